//! The callers' side of an application: the engine under a lock, wakers for those who wait, and the thread's life.

use std::any::TypeId;
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use lrts_core::bundle::open_own_executable;
use lrts_core::clock::Moment;
use lrts_core::ids::{ApplicationId, JobId, SessionId};
use lrts_core::keys::Security;
use lrts_core::limits::{BODY_BYTES, BUNDLE_BYTES, SERVICES_PER_BUNDLE, SUBMIT_BYTES, SUBMIT_JOBS};
use lrts_core::protocol::application::{JobSet, content_digest};
use lrts_core::spec::JobOptions;
use lrts_core::transport::{Hello, LinkConfig, LinkSender, Role, SocketDir};
use tokio::sync::{Notify, watch};

use super::AsService;
use super::driver::{self, Driver, Program};
use super::engine::{
    Action, Delivery, Engine, Fatal, JobFault, Key, Listed, NewJob, Next, Settings, Step, WaitError, WaitId,
};
use super::interrupt;
use crate::completed::AsCompleted;
use crate::display::{Display, ProgressDisplay};
use crate::encoding;
use crate::error::ClientError;
use crate::handles::{Decode, JobHandle, JobOutput};
use crate::information::{ApplicationInformation, Bundle, Checked};
use crate::park::block_until;
use crate::results::ServiceResult;
use crate::service::{self, Hosted, Service};

/// How long an application that is dropped goes on sending.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// How long an application that has ended waits for its last words to leave.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// An application, its thread, and its end.
pub(crate) struct Application {
    shared: Arc<Shared>,
    default_options: Arc<JobOptions>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Whether the thread is done.
    done: watch::Receiver<bool>,
    /// Ctrl-C detaches it as long as this lives.
    _interrupt: interrupt::Registration,
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
    services: Vec<Hosted>,
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
    pub(super) fn start_with(checked: Checked, services: Vec<Hosted>) -> Result<Arc<Self>, ClientError> {
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
        if checked.nameless && !checked.ends_with_program {
            // A person needs a name to come back to its jobs.
            service::say(&format!("lrts: this application's id is {}", checked.application));
        }

        let session = SessionId::random();
        let settings = Settings {
            application: checked.application,
            named: !checked.nameless,
            session,
            services: services.iter().map(|service| service.name.to_owned()).collect(),
            on_disconnect: checked.on_disconnect,
            progress_rtt_test: checked.progress_rtt_test,
            communication_time_out: checked.communication_time_out,
        };
        let link = |address: String, server| {
            let hello = Hello::new(Role::Client, checked.application.to_string(), driver::host_name());
            let security = Security::new(checked.keys.clone(), Role::Client);
            LinkConfig::new(address, server, hello, security, sockets.path())
        };
        let watched = checked.progress_display != ProgressDisplay::Hidden || checked.progress_sink.is_some();
        let scheduler = link(checked.scheduler.to_string(), Role::Scheduler);
        let progress_server =
            watched.then(|| link(checked.progress_server.to_string(), Role::ProgressServer));

        // Before the display, which else takes the signal for itself alone.
        let interrupt = interrupt::Registration::new();
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
        interrupt.set(&shared, done.clone(), checked.ends_with_program);
        Ok(Arc::new(Self {
            shared,
            default_options: Arc::new(JobOptions::new()),
            thread: Mutex::new(Some(thread)),
            done,
            _interrupt: interrupt,
        }))
    }

    pub(crate) fn id(&self) -> ApplicationId {
        self.shared.application
    }

    /// Schedules one service. It is encoded at once, so that the future needs nothing of it.
    pub(crate) fn schedule<'a, S: Service>(
        &'a self,
        service: &S,
    ) -> impl Future<Output = Result<JobHandle<S::Output>, ClientError>> + Send + use<'a, S> {
        self.submit_one(self.new_job(service, Arc::clone(&self.default_options)))
    }

    pub(crate) fn schedule_with<'a, S: Service>(
        &'a self,
        service: &S,
        mut options: JobOptions,
    ) -> impl Future<Output = Result<JobHandle<S::Output>, ClientError>> + Send + use<'a, S> {
        let job = options.validate().map_err(ClientError::from).and_then(|()| {
            let key = options.take_key();
            let mut job = self.new_job(service, Arc::new(options))?;
            let digest = |key: String| Key { key: key.into(), digest: content_digest(S::NAME, &job.payload) };
            job.key = key.map(digest);
            Ok(job)
        });
        self.submit_one(job)
    }

    async fn submit_one<T: JobOutput>(
        &self,
        job: Result<NewJob, ClientError>,
    ) -> Result<JobHandle<T>, ClientError> {
        let job = job?;
        let keyed = job.key.as_ref().map(|key| JobId::keyed(self.shared.application, &key.key));
        let sequence = self.submit(vec![job]).await?;
        Ok(JobHandle::new(keyed.unwrap_or_else(|| self.shared.session.job(sequence))))
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
        let index = self.shared.services.iter().position(|service| service.name == S::NAME);
        let index = index.ok_or(ClientError::UnknownService { service: S::NAME })?;
        let payload =
            encoding::encode(service).map_err(|source| ClientError::Encode { service: S::NAME, source })?;
        if payload.len() as u64 > BODY_BYTES {
            return Err(ClientError::TooLarge { service: S::NAME, bytes: payload.len() });
        }
        let index = u16::try_from(index).expect("the number of services is checked at the start");
        Ok(NewJob { service: index, options, payload: payload.into(), key: None })
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
        let numbers = self.shared.numbers(jobs.iter().map(JobHandle::id));
        let deliveries = {
            let wait = self.shared.wait(|engine, now| engine.wait_for_all(numbers.clone(), now));
            wait.ready(Engine::poll_all).await.map_err(|error| self.shared.error(error))?
        };
        let delivered: Vec<u64> = deliveries.iter().map(|delivery| delivery.number).collect();
        let read = |(job, number): (&JobHandle<T>, &u64)| {
            let index = delivered.binary_search(number).expect("every job was delivered");
            self.shared.read(&deliveries[index], job.decode())
        };
        let results = jobs.iter().zip(&numbers).map(read).collect();
        self.shared.settle(&delivered, &results);
        results
    }

    pub(crate) fn as_completed<T, J>(self: &Arc<Self>, jobs: J) -> AsCompleted<T>
    where
        J: IntoIterator<Item: Borrow<JobHandle<T>>>,
    {
        let mut decode = None;
        let jobs: Vec<JobId> = jobs
            .into_iter()
            .map(|job| {
                decode = Some(job.borrow().decode());
                job.borrow().id()
            })
            .collect();
        let wait = self.shared.change(|engine, now| {
            let numbers = jobs.into_iter().map(|job| engine.number(job)).collect();
            engine.wait_for_each(numbers, now)
        });
        AsCompleted::new(Arc::clone(self), decode, wait)
    }

    /// Handles of all jobs whose output is `T`, by id.
    pub(crate) async fn jobs<T: JobOutput>(&self) -> Result<Vec<JobHandle<T>>, ClientError> {
        let mut ids = Vec::new();
        for (service, set) in self.list(None).await? {
            let Some(index) = self.shared.service_of::<T>(&service) else { continue };
            let sequences = set.ranges.iter().flat_map(|&(first, last)| first..=last);
            let jobs: Vec<JobId> = sequences.map(|sequence| set.session.job(sequence)).collect();
            self.shared.change(|engine, _| engine.exist(jobs.iter().copied(), index));
            ids.extend(jobs);
        }
        ids.sort_unstable();
        Ok(ids.into_iter().map(JobHandle::new).collect())
    }

    /// A handle of this job.
    pub(crate) async fn job<T: JobOutput>(&self, job: JobId) -> Result<JobHandle<T>, ClientError> {
        let listed = self.list(Some(job)).await?;
        let Some((service, _)) = listed.into_iter().find(|(_, set)| *set == JobSet::one(job)) else {
            return Err(ClientError::UnknownJob { job, application: self.shared.application.to_string() });
        };
        let Some(index) = self.shared.service_of::<T>(&service) else {
            return Err(ClientError::OtherOutput { job, service, expected: std::any::type_name::<T>() });
        };
        self.shared.change(|engine, _| engine.exist([job], index));
        Ok(JobHandle::new(job))
    }

    async fn list(&self, job: Option<JobId>) -> Result<Listed, ClientError> {
        let wait = self.shared.wait(|engine, now| engine.wait_for_list(job, now));
        wait.ready(Engine::poll_list).await.map_err(|error| self.shared.error(error))
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
                self.shared.settle(&[delivery.number], &result);
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
        let cancelled = self.shared.change(|engine, _| {
            let number = engine.number(job);
            engine.cancel(number)
        });
        cancelled.map_err(|error| self.shared.error(error))
    }

    pub(crate) fn set_stage(&self, stage: &str) {
        self.shared.display.stage(stage);
    }

    pub(crate) async fn stop(&self) -> Result<(), ClientError> {
        self.end(Engine::stop).await
    }

    pub(crate) async fn detach(&self) -> Result<(), ClientError> {
        self.flush().await?;
        self.end(Engine::leave).await
    }

    /// Begins the end, waits for the scheduler's farewell, and ends everything here.
    async fn end(&self, begin: impl FnOnce(&mut Engine)) -> Result<(), ClientError> {
        self.shared.change(|engine, _| begin(engine));
        let told = self.shared.farewell().await;
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
        self.shared.close(FLUSH_TIME);
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

    /// Whether the scheduler is there.
    pub(super) fn is_connected(&self) -> bool {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(LinkSender::is_up)
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

    /// The numbers by which jobs go in the engine.
    fn numbers(&self, jobs: impl Iterator<Item = JobId>) -> Vec<u64> {
        self.change(|engine, _| jobs.map(|job| engine.number(job)).collect())
    }

    /// The index of a service whose output is `T`; one that this program doesn't have counts if any output will do.
    fn service_of<T: JobOutput>(&self, name: &str) -> Option<u16> {
        let index = self.services.iter().position(|service| service.name == name);
        let output = index.map(|index| self.services[index].output);
        let fits = T::RAW || output == Some(TypeId::of::<T>());
        fits.then(|| index.and_then(|index| u16::try_from(index).ok()).unwrap_or(u16::MAX))
    }

    /// Leaves within the time limit: what was scheduled is flushed and the scheduler told, but nobody who waits here is woken.
    /// Returns whether the scheduler has confirmed it; none if there are no jobs.
    pub(super) fn detach_within(&self, limit: Duration) -> Option<bool> {
        let deadline = Moment::now() + limit;
        // A result that a caller gets now would be lost with the program.
        self.change(|engine, _| engine.freeze());
        let flushed = async {
            let wait = self.wait(Engine::wait_for_flush);
            // What was refused can be told nobody any more.
            let _ = wait.ready(Engine::poll_flush).await;
        };
        block_until(flushed, Some(deadline));
        self.change(|engine, _| engine.begin_detach());
        block_until(self.farewell(), Some(deadline.max(Moment::now() + FAREWELL_TIME)));
        self.close(FAREWELL_TIME);
        self.with_engine(|engine, _| {
            let has_jobs = engine.may_have_jobs() || engine.unsent() > 0;
            has_jobs.then(|| engine.is_answered())
        })
    }

    async fn farewell(&self) -> Result<(), WaitError> {
        let wait = self.wait(Engine::wait_for_farewell);
        wait.ready(Engine::poll_farewell).await
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
        let job_id = delivery.job;
        let report = &delivery.report;
        let outcome = match &report.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(decode(&delivery.body).map_err(|source| ClientError::Decode {
                job: job_id,
                service: self
                    .services
                    .get(usize::from(delivery.service))
                    .map_or("unknown", |service| service.name)
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

    /// What a person who is turned away has to know of the jobs, if there may be some.
    fn what_goes_on(&self) -> String {
        match self.with_engine(|engine, _| engine.may_have_jobs()) {
            true => format!(
                "; jobs that it has go on as after a lost connection, and a start with LRTS_APPLICATION_ID={} comes back to them",
                self.application
            ),
            false => String::new(),
        }
    }

    fn error(&self, error: WaitError) -> ClientError {
        let scheduler = || self.scheduler.clone();
        match error {
            WaitError::Fatal(Fatal::Superseded) => {
                ClientError::Superseded { application: self.application.to_string() }
            }
            WaitError::Fatal(Fatal::Version(reason)) => {
                ClientError::Version { scheduler: scheduler(), reason: reason + &self.what_goes_on() }
            }
            WaitError::Fatal(Fatal::Unauthorised(reason)) => {
                ClientError::Unauthorised { scheduler: scheduler(), reason: reason + &self.what_goes_on() }
            }
            WaitError::Fatal(Fatal::Foreign(reason)) => {
                ClientError::Unauthorised { scheduler: scheduler(), reason }
            }
            WaitError::Fatal(Fatal::Limit(reason)) => ClientError::Limit { scheduler: scheduler(), reason },
            WaitError::Fatal(Fatal::Bundle(reason)) => ClientError::Bundle { reason },
            WaitError::Fatal(Fatal::Stopped) => ClientError::Stopped,
            WaitError::Fatal(Fatal::Detached) => ClientError::Detached,
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
            WaitError::Job(job, JobFault::KeyConflict(key)) => {
                ClientError::KeyConflict { job, key: key.as_ref().to_owned() }
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
