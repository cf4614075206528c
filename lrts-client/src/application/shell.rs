//! The callers' side of an application: the engine under a lock, wakers for those who wait, and the thread's life.

use std::borrow::Borrow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use lrts_core::bundle::open_own_executable;
use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, JobId, SessionId};
use lrts_core::limits::{BODY_BYTES, BUNDLE_BYTES, SERVICES_PER_BUNDLE, SUBMIT_BYTES, SUBMIT_JOBS};
use lrts_core::spec::{JobOptions, OnDisconnect};
use lrts_core::transport::{Hello, LinkConfig, LinkSender, Role, SocketDir};
use tokio::sync::{Notify, watch};

use super::AsService;
use super::driver::{self, Driver, Program};
use super::engine::{
    Action, Delivery, Engine, Fatal, JobFault, NewJob, Next, Settings, Step, WaitError, WaitId,
};
use crate::completed::AsCompleted;
use crate::display::{Display, ProgressDisplay};
use crate::encoding;
use crate::error::ClientError;
use crate::handles::{Decode, JobHandle};
use crate::information::{ApplicationInformation, Bundle, Checked};
use crate::results::ServiceResult;
use crate::service::{self, Service};

/// How long an application that is dropped goes on sending.
const DETACH_TIME: Duration = Duration::from_secs(2);

/// How long a stopped application waits for its last words to leave.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// An application, its thread, and its end.
pub(crate) struct Application {
    shared: Arc<Shared>,
    default_options: Arc<JobOptions>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Whether the thread is done.
    done: watch::Receiver<bool>,
}

/// What callers and the application's thread share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// The driver has something to look at.
    pub(super) changed: Notify,
    pub(super) display: Display,
    pub(super) application: ApplicationId,
    scheduler: String,
    session: SessionId,
    services: Vec<&'static str>,
    /// Says why there is no connection.
    link: Mutex<Option<LinkSender>>,
}

struct State {
    engine: Engine,
    wakers: BTreeMap<WaitId, Waker>,
    /// Until when the driver may go on, once the end has come.
    closing: Option<Moment>,
}

impl Application {
    /// Starts the thread.
    pub(crate) fn start(information: ApplicationInformation) -> Result<Arc<Self>, ClientError> {
        service::refuse_foreign_mode();
        let services = service::registered().ok_or(ClientError::NoHostServices)?.to_vec();
        Self::start_with(information.check()?, services)
    }

    /// Starts the thread of an application with these services.
    pub(super) fn start_with(
        checked: Checked,
        services: Vec<&'static str>,
    ) -> Result<Arc<Self>, ClientError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| ClientError::Start { what, source }
        };
        if services.len() > SERVICES_PER_BUNDLE {
            let problem = format!(
                "{} services in one program: at most {SERVICES_PER_BUNDLE} are allowed",
                services.len()
            );
            return Err(ClientError::Setting { name: "host_services!", problem });
        }
        let program = open_program(&checked.bundle)?;
        let sockets = SocketDir::create().map_err(failed("making a directory for sockets"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("lrts-client")
            .enable_all()
            .build()
            .map_err(failed("starting threads"))?;
        if checked.nameless && checked.on_disconnect == OnDisconnect::Keep {
            // Its jobs outlive it, so a person needs a name for them.
            service::say(&format!("lrts: this application's id is {}", checked.application));
        }

        let session = SessionId::random();
        let settings = Settings {
            application: checked.application,
            session,
            services: services.iter().map(|&name| name.to_owned()).collect(),
            on_disconnect: checked.on_disconnect,
            progress_rtt_test: checked.progress_rtt_test,
            communication_time_out: checked.communication_time_out,
        };
        let link = |address: String| {
            let hello = Hello::new(Role::Client, checked.application.to_string(), driver::host_name());
            LinkConfig::new(address, hello, sockets.path())
        };
        let watched = checked.progress_display != ProgressDisplay::Hidden || checked.progress_sink.is_some();
        let scheduler = link(checked.scheduler.to_string());
        let progress_server = watched.then(|| link(checked.progress_server.to_string()));

        let display = Display::start(checked.progress_display, checked.progress_sink);
        display.set_iteration_timeout(checked.progress_iteration);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                engine: Engine::new(settings, Moment::now()),
                wakers: BTreeMap::new(),
                closing: None,
            }),
            changed: Notify::new(),
            display,
            application: checked.application,
            scheduler: scheduler.address.clone(),
            session,
            services,
            link: Mutex::new(None),
        });
        let driver = Driver {
            shared: Arc::clone(&shared),
            program,
            scheduler,
            progress_server,
            progress_iteration: checked.progress_iteration,
            sockets,
        };
        let (set_done, done) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("lrts-application".to_owned())
            .spawn(move || {
                driver.run(runtime);
                set_done.send_replace(true);
            })
            .map_err(failed("starting a thread"))?;
        let default_options = Arc::new(JobOptions::new());
        Ok(Arc::new(Self { shared, default_options, thread: Mutex::new(Some(thread)), done }))
    }

    pub(crate) fn id(&self) -> ApplicationId {
        self.shared.application
    }

    pub(crate) fn default_options(&self) -> &Arc<JobOptions> {
        &self.default_options
    }

    /// Schedules one service. It is encoded at once, so that the future needs nothing of it.
    pub(crate) fn schedule<'a, S: Service>(
        &'a self,
        service: &S,
        options: Arc<JobOptions>,
    ) -> impl Future<Output = Result<JobHandle<S::Output>, ClientError>> + Send + use<'a, S> {
        let job = options.validate().map_err(ClientError::from).and_then(|()| self.new_job(service, options));
        async move {
            let sequence = self.submit(vec![job?]).await?;
            Ok(JobHandle::new(self.shared.session.job(sequence)))
        }
    }

    pub(crate) async fn schedule_many<I, Kind>(
        &self,
        services: I,
    ) -> Result<Vec<JobHandle<<I::Item as AsService<Kind>>::Output>>, ClientError>
    where
        I: IntoIterator<Item: AsService<Kind>>,
    {
        let mut handles = Vec::new();
        let mut services = services.into_iter();
        loop {
            let (mut jobs, mut bytes) = (Vec::new(), 0);
            while jobs.len() < SUBMIT_JOBS && bytes < SUBMIT_BYTES {
                let Some(service) = services.next() else { break };
                let job = self.new_job(service.as_service(), Arc::clone(&self.default_options))?;
                bytes += job.payload.len();
                jobs.push(job);
            }
            let count = jobs.len() as u64;
            if count == 0 {
                return Ok(handles);
            }
            let first = self.submit(jobs).await?;
            handles.extend(
                (first..first + count).map(|sequence| JobHandle::new(self.shared.session.job(sequence))),
            );
        }
    }

    fn new_job<S: Service>(&self, service: &S, options: Arc<JobOptions>) -> Result<NewJob, ClientError> {
        let index = self.shared.services.iter().position(|&name| name == S::NAME);
        let index = index.ok_or(ClientError::UnknownService { service: S::NAME })?;
        let payload =
            encoding::encode(service).map_err(|source| ClientError::Encode { service: S::NAME, source })?;
        if payload.len() as u64 > BODY_BYTES {
            return Err(ClientError::TooLarge { service: S::NAME, bytes: payload.len() });
        }
        let index = u16::try_from(index).expect("the number of services is checked at the start");
        Ok(NewJob { service: index, options, payload: payload.into() })
    }

    /// Hands jobs to the engine once it has room for them; returns the first one's sequence.
    async fn submit(&self, mut jobs: Vec<NewJob>) -> Result<u64, ClientError> {
        match self.shared.change(|engine, _| engine.submit(&mut jobs)) {
            Ok(Some(first)) => return Ok(first),
            Ok(None) => {}
            Err(error) => return Err(self.shared.error(error)),
        }
        let wait = self.shared.wait(Engine::wait_for_room);
        let outcome = wait.ready(|engine, id| match engine.submit(&mut jobs) {
            Ok(Some(first)) => Some(Ok(first)),
            Ok(None) => engine.poll_room(id).map(Err),
            Err(error) => Some(Err(error)),
        });
        outcome.await.map_err(|error| self.shared.error(error))
    }

    pub(crate) async fn flush(&self) -> Result<(), ClientError> {
        let wait = self.shared.wait(Engine::wait_for_flush);
        wait.ready(Engine::poll_flush).await.map_err(|error| self.shared.error(error))
    }

    pub(crate) async fn wait_for<T>(&self, job: &JobHandle<T>) -> Result<ServiceResult<T>, ClientError> {
        let mut results = self.wait_for_multi(std::slice::from_ref(job)).await?;
        Ok(results.pop().expect("one job has one result"))
    }

    pub(crate) async fn wait_for_multi<T>(
        &self,
        jobs: &[JobHandle<T>],
    ) -> Result<Vec<ServiceResult<T>>, ClientError> {
        let mut sequences = Vec::with_capacity(jobs.len());
        for job in jobs {
            sequences.push(self.shared.sequence(job.id())?);
        }
        let deliveries = {
            let wait = self.shared.wait(|engine, now| engine.wait_for_all(sequences, now));
            wait.ready(Engine::poll_all).await.map_err(|error| self.shared.error(error))?
        };
        let delivered: Vec<u64> = deliveries.iter().map(|delivery| delivery.sequence).collect();
        let read = |job: &JobHandle<T>| {
            let index = delivered.binary_search(&job.id().sequence);
            self.shared.read(&deliveries[index.expect("every job was delivered")], job.decode())
        };
        let results = jobs.iter().map(read).collect();
        self.shared.settle(&delivered, &results);
        results
    }

    pub(crate) fn as_completed<T, J>(self: &Arc<Self>, jobs: J) -> AsCompleted<T>
    where
        J: IntoIterator<Item: Borrow<JobHandle<T>>>,
    {
        let (mut decode, mut sequences, mut foreign) = (None, Vec::new(), VecDeque::new());
        for job in jobs {
            let job = job.borrow();
            decode = Some(job.decode());
            match self.shared.sequence(job.id()) {
                Ok(sequence) => sequences.push(sequence),
                Err(_) => foreign.push_back(job.id()),
            }
        }
        let wait = self.shared.change(|engine, now| engine.wait_for_each(sequences, now));
        AsCompleted::new(Arc::clone(self), decode, foreign, wait)
    }

    pub(crate) fn poll_stream<T>(
        &self,
        wait: WaitId,
        decode: Decode<T>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<ServiceResult<T>, ClientError>>> {
        let next = self.shared.poll(wait, context, |engine, now| match engine.poll_each(wait, now) {
            Next::Pending => None,
            next @ (Next::Item(_) | Next::End) => Some(next),
        });
        next.map(|next| match next {
            Next::Item(Ok(delivery)) => {
                let result = self.shared.read(&delivery, decode);
                self.shared.settle(&[delivery.sequence], &result);
                Some(result)
            }
            Next::Item(Err(error)) => Some(Err(self.shared.error(error))),
            Next::Pending | Next::End => None,
        })
    }

    pub(crate) fn remove_stream(&self, wait: WaitId) {
        self.shared.remove(wait);
    }

    pub(crate) fn cancel(&self, job: JobId) -> Result<(), ClientError> {
        let sequence = self.shared.sequence(job)?;
        let cancelled = self.shared.change(|engine, _| engine.cancel(sequence));
        cancelled.map_err(|error| self.shared.error(error))
    }

    pub(crate) fn set_stage(&self, stage: &str) {
        self.shared.display.stage(stage);
    }

    pub(crate) async fn stop(&self) -> Result<(), ClientError> {
        self.shared.change(|engine, _| engine.stop());
        let told = {
            let wait = self.shared.wait(Engine::wait_for_stop);
            wait.ready(Engine::poll_stop).await
        };
        self.shared.close(FAREWELL_TIME);
        // Ends with an error only if the thread has panicked: then it is done, too.
        let _ = self.done.clone().wait_for(|done| *done).await;
        self.join();
        told.map_err(|error| self.shared.error(error))
    }

    /// Waits for the thread's end.
    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The panic hook has reported a panic.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.shared.close(DETACH_TIME);
        self.join();
    }
}

impl fmt::Debug for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Application")
            .field("id", &self.shared.application)
            .field("scheduler", &self.shared.scheduler)
            .finish_non_exhaustive()
    }
}

fn open_program(bundle: &Bundle) -> Result<Program, ClientError> {
    let (file, what) = match bundle {
        Bundle::Installed(name) => return Ok(Program::Installed(name.clone())),
        Bundle::CurrentExecutable => (open_own_executable(), "opening this program's executable".to_owned()),
        Bundle::Executable(path) => (File::open(path), format!("opening {}", path.display())),
    };
    let checked = file.and_then(|file| file.metadata().map(|metadata| (file, metadata)));
    let (file, metadata) = checked.map_err(|source| ClientError::Start { what, source })?;
    if !metadata.is_file() || metadata.len() > BUNDLE_BYTES {
        let reason = format!("it must be a file of at most {BUNDLE_BYTES} bytes, and has {}", metadata.len());
        return Err(ClientError::Bundle { reason });
    }
    Ok(Program::Shipped(Arc::new(file)))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something that the driver may have to act upon.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut Engine, Moment) -> R) -> R {
        self.call(|state, now| change(&mut state.engine, now))
    }

    /// Changes something on a caller's behalf. The driver is woken only if there is something for it: results that are handed
    /// out one by one are not worth it.
    fn call<R>(&self, change: impl FnOnce(&mut State, Moment) -> R) -> R {
        let (result, wake) = self.with(|state, now| {
            let due = state.engine.taken_due();
            let result = change(state, now);
            (result, !state.engine.is_quiet() || state.engine.taken_due() != due)
        });
        if wake {
            self.changed.notify_one();
        }
        result
    }

    /// Changes something on the driver's own behalf, which looks at the engine afterwards anyway.
    pub(super) fn with_engine<R>(&self, change: impl FnOnce(&mut Engine, Moment) -> R) -> R {
        self.with(|state, now| change(&mut state.engine, now))
    }

    fn with<R>(&self, change: impl FnOnce(&mut State, Moment) -> R) -> R {
        let now = Moment::now();
        let mut state = self.lock();
        let result = change(&mut state, now);
        let actions = state.engine.take_actions();
        if actions.is_empty() {
            return result;
        }
        let (mut wakers, mut shows) = (Vec::new(), Vec::new());
        for action in actions {
            match action {
                Action::Wake(wait) => wakers.extend(state.wakers.remove(&wait)),
                Action::ShowTotals(_) | Action::ShowEnded(..) => shows.push(action),
            }
        }
        // Wakers run code of other executors, which may call back.
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        for action in shows {
            match action {
                Action::ShowTotals(totals) => self.display.totals(totals),
                Action::ShowEnded(attempt, bars) => self.display.ended(attempt, bars),
                Action::Wake(_) => {}
            }
        }
        result
    }

    /// What the driver is to do next.
    pub(super) fn next_step(&self) -> Step {
        self.with_engine(Engine::next_step)
    }

    /// When the driver has to look again: at the engine, and at the end.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let state = self.lock();
        state.engine.next_deadline().into_iter().chain(state.closing).min()
    }

    /// How long the driver may take for its farewell, once it has nothing more to say or its time is up.
    pub(super) fn time_to_go(&self) -> Option<Duration> {
        let state = self.lock();
        let closing = state.closing?;
        let left = closing.since(Moment::now());
        (left.is_zero() || state.engine.is_settled()).then_some(left)
    }

    /// Asks the driver to end.
    fn close(&self, limit: Duration) {
        self.with(|state, now| {
            state.closing.get_or_insert(now + limit);
            state.engine.hurry();
        });
        self.changed.notify_one();
    }

    /// The link, to ask why it is down.
    pub(super) fn set_link(&self, link: LinkSender) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
    }

    /// Says on stderr what was not sent when the application has ended.
    pub(super) fn report_unsent(&self) {
        let state = self.lock();
        let unsent = state.engine.unsent();
        if unsent > 0 && !state.engine.is_stopped() {
            service::say(&format!(
                "lrts: {unsent} jobs had not reached the scheduler at {} when application {} ended, and are lost: flush() \
                 waits until all have",
                self.scheduler, self.application
            ));
        }
    }

    fn sequence(&self, job: JobId) -> Result<u64, ClientError> {
        if job.session == self.session { Ok(job.sequence) } else { Err(ClientError::ForeignJob { job }) }
    }

    /// Registers a wait, removed when it is dropped.
    fn wait(&self, register: impl FnOnce(&mut Engine, Moment) -> WaitId) -> Wait<'_> {
        Wait { shared: self, id: self.change(register) }
    }

    /// Polls a wait; if it isn't ready, it is polled again once the engine says so.
    fn poll<R>(
        &self,
        wait: WaitId,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut Engine, Moment) -> Option<R>,
    ) -> Poll<R> {
        self.call(|state, now| match poll(&mut state.engine, now) {
            Some(ready) => Poll::Ready(ready),
            None => {
                state.wakers.insert(wait, context.waker().clone());
                Poll::Pending
            }
        })
    }

    fn remove(&self, wait: WaitId) {
        self.call(|state, _| {
            state.wakers.remove(&wait);
            state.engine.remove_wait(wait);
        });
    }

    /// Makes a result of what was delivered.
    fn read<T>(&self, delivery: &Delivery, decode: Decode<T>) -> Result<ServiceResult<T>, ClientError> {
        let job_id = self.session.job(delivery.sequence);
        let report = &delivery.report;
        let outcome = match &report.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(decode(&delivery.body).map_err(|source| ClientError::Decode {
                job: job_id,
                service: self
                    .services
                    .get(usize::from(delivery.service))
                    .copied()
                    .unwrap_or_default()
                    .to_owned(),
                source,
            })?),
        };
        Ok(ServiceResult {
            job_id,
            outcome,
            attempts: report.attempts,
            worker: report.worker,
            queued: report.queued,
            ran: report.ran,
        })
    }

    /// What was read goes to the caller; what could not be read stays at the scheduler.
    fn settle<R>(&self, delivered: &[u64], read: &Result<R, ClientError>) {
        self.change(|engine, now| match read {
            Ok(_) => engine.returned(delivered, now),
            Err(_) => engine.give_back(delivered),
        });
    }

    fn error(&self, error: WaitError) -> ClientError {
        let scheduler = || self.scheduler.clone();
        match error {
            WaitError::Fatal(Fatal::Superseded) => {
                ClientError::Superseded { application: self.application.to_string() }
            }
            WaitError::Fatal(Fatal::Version(reason)) => {
                ClientError::Version { scheduler: scheduler(), reason }
            }
            WaitError::Fatal(Fatal::Unauthorised(reason)) => {
                ClientError::Unauthorised { scheduler: scheduler(), reason }
            }
            WaitError::Fatal(Fatal::Bundle(reason)) => ClientError::Bundle { reason },
            WaitError::Fatal(Fatal::Stopped) => ClientError::Stopped,
            WaitError::Bundle(reason) => ClientError::Bundle { reason: reason.as_ref().to_owned() },
            WaitError::NoScheduler(waited) => {
                let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
                let trouble = link.as_ref().and_then(LinkSender::trouble);
                let trouble = trouble.unwrap_or_else(|| "no answer yet".to_owned());
                ClientError::NoScheduler { scheduler: scheduler(), waited, trouble }
            }
            WaitError::Job(job, JobFault::Refused(reason)) => {
                ClientError::Refused { job, reason: reason.as_ref().to_owned() }
            }
            WaitError::Job(job, JobFault::Lost) => ClientError::Lost { job },
            WaitError::Job(job, JobFault::AlreadyTaken) => ClientError::AlreadyTaken { job },
        }
    }
}

/// A registered wait.
struct Wait<'a> {
    shared: &'a Shared,
    id: WaitId,
}

impl Wait<'_> {
    /// Polls until there is an outcome.
    async fn ready<R>(&self, mut poll: impl FnMut(&mut Engine, WaitId) -> Option<R>) -> R {
        std::future::poll_fn(|context| self.shared.poll(self.id, context, |engine, _| poll(engine, self.id)))
            .await
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.shared.remove(self.id);
    }
}
