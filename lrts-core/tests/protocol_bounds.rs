//! Bounds of heads: the most that an honest peer says is within them, and what a hostile one says costs no memory.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use lrts_core::ids::{AttemptId, BarId, JobId, SessionId, WorkerId};
use lrts_core::limits::*;
use lrts_core::protocol::application::*;
use lrts_core::protocol::codec::{Head, decode, encode, measure};
use lrts_core::protocol::command::*;
use lrts_core::protocol::host::{FromHost, Output, Payload, StartAttempt, ToHost};
use lrts_core::protocol::progress::*;
use lrts_core::protocol::worker::*;
use lrts_core::spec::{BundleRef, JobOptions, OnDisconnect, Platform};
use lrts_core::status::{Failure, FailureKind, JobState};
use lrts_core::worker_secret::WorkerSecret;

const LONG: Duration = Duration::new(u64::MAX, 999_999_999);
const SESSION: SessionId = SessionId(u64::MAX);
const JOB: JobId = JobId { session: SESSION, sequence: u64::MAX };
const ATTEMPT: AttemptId = AttemptId { job: JOB, attempt: u32::MAX };

fn text(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn owned() -> OwnedApplication {
    OwnedApplication {
        owner: Some(text(USER_NAME_BYTES).parse().unwrap()),
        application: text(APPLICATION_ID_BYTES).parse().unwrap(),
    }
}

fn platform() -> Platform {
    Platform { target: text(PLATFORM_BYTES), glibc: Some((u32::MAX, u32::MAX)) }
}

fn bar_text() -> BarText {
    BarText {
        description: text(BAR_DESCRIPTION_BYTES),
        message: text(BAR_MESSAGE_BYTES),
        unit: text(BAR_UNIT_BYTES),
        color: Color::Magenta,
        leave: true,
    }
}

fn numbers() -> BarNumbers {
    BarNumbers { position: u64::MAX, total: Some(u64::MAX), closed: true, elapsed: LONG }
}

fn update() -> BarUpdate {
    BarUpdate { bar: BarId { attempt: ATTEMPT, index: u32::MAX }, text: Some(bar_text()), numbers: numbers() }
}

fn bars() -> Vec<BarRecord> {
    let record = BarRecord { index: u32::MAX, text: bar_text(), numbers: numbers() };
    vec![record; BARS_PER_ATTEMPT as usize]
}

fn options() -> JobOptions {
    let mut options = JobOptions::new()
        .label(text(LABEL_BYTES))
        .priority(i32::MIN)
        .run_timeout(LONG)
        .progress_timeout(LONG)
        .memory_limit(u64::MAX)
        .exclusive();
    for _ in 0..ENV_VARIABLES {
        options = options.env(text(64), text(ENV_BYTES / ENV_VARIABLES - 64));
    }
    options.validate().unwrap();
    options
}

fn set() -> JobSet {
    JobSet { session: SESSION, ranges: vec![(u64::MAX - 1, u64::MAX); JOB_SET_RANGES] }
}

fn failure() -> Failure {
    Failure::new(FailureKind::OutOfMemory, text(FAILURE_MESSAGE_BYTES))
}

fn fits<T: Head + PartialEq>(message: &T) {
    let (values, bytes) = measure(message);
    let HeadBounds { bytes: most_bytes, values: most_values } = T::BOUNDS;
    assert!(values <= most_values && bytes <= most_bytes, "{}: {values} values, {bytes} bytes", T::NAME);
    assert!(decode::<T>(&encode(message)).unwrap() == *message);
}

#[test]
fn the_most_that_an_application_says_is_within_bounds() {
    fits(&FromApplication::Attach(Attach {
        application: owned().application,
        session: SESSION,
        bundle: BundleRef::Installed(text(BUNDLE_NAME_BYTES)),
        services: vec![text(SERVICE_NAME_BYTES); SERVICES_PER_BUNDLE],
        on_disconnect: OnDisconnect::CancelAfter(LONG),
        progress_rtt_test: LONG,
        credit: Credit { results: u32::MAX, bytes: u64::MAX },
    }));
    // The last options may exceed what all of them together may come to.
    let (values, bytes) = measure(&options());
    let by_bytes = SUBMIT_OPTION_BYTES.div_ceil(bytes);
    let small = JobOptions::new().label("x");
    let by_values = SUBMIT_OPTION_VALUES.div_ceil(measure(&small).0).min(SUBMIT_JOBS - 1);
    assert!(by_bytes * values <= SUBMIT_OPTION_VALUES);
    for options in [vec![options(); by_bytes + 1], [vec![small; by_values], vec![options()]].concat()] {
        fits(&FromApplication::Submit {
            first: u64::MAX,
            options,
            jobs: vec![
                JobRange {
                    count: u32::MAX,
                    service: u16::MAX,
                    options: u16::MAX,
                    payload_bytes: u32::MAX
                };
                SUBMIT_JOBS
            ],
            keys: vec![KeyedJob { index: u32::MAX, key: text(KEY_BYTES), digest: u64::MAX }; SUBMIT_JOBS],
        });
    }
    fits(&FromApplication::Want { jobs: set(), urgent: true });
    fits(&FromApplication::Taken { jobs: set() });
    fits(&FromApplication::Cancel { jobs: set() });
}

#[test]
fn the_most_that_an_application_hears_is_within_bounds() {
    let one = JobSet { session: SESSION, ranges: vec![(u64::MAX - 1, u64::MAX)] };
    fits(&ToApplication::Listed {
        request: u64::MAX,
        jobs: vec![(text(SERVICE_NAME_BYTES), one); LISTED_RANGES],
        last: true,
    });
    fits(&ToApplication::Result {
        job: JOB,
        report: JobReport {
            failure: Some(failure()),
            attempt: u32::MAX,
            attempts: u32::MAX,
            worker: Some(WorkerId(u64::MAX)),
            queued: LONG,
            ran: LONG,
            bars: bars(),
        },
    });
}

#[test]
fn the_most_that_a_worker_says_and_hears_is_within_bounds() {
    let held = HeldAttempt { attempt: ATTEMPT, running: Some(LONG), pid: u32::MAX, ended: true };
    let attempts = SLOTS as usize + ATTEMPTS_AHEAD;
    let register = Register {
        worker: WorkerId(u64::MAX),
        secret: WorkerSecret::random(),
        host: text(HELLO_HOST_BYTES),
        pid: u32::MAX,
        instance: u64::MAX,
        slots: SLOTS,
        platform: platform(),
        boot_id: text(BOOT_ID_BYTES),
        installed: vec![text(BUNDLE_NAME_BYTES); INSTALLED_BUNDLES],
        ships: true,
        attempts: vec![held; attempts],
        store: Some(u64::MAX),
    };
    fits(&FromWorker::Register(register));
    fits(&FromWorker::Ended(Ended {
        attempt: ATTEMPT,
        end: AttemptEnd::Failed(failure()),
        ran: LONG,
        peak_memory_bytes: u64::MAX,
        body_bytes: (u64::MAX, u32::MAX, u32::MAX),
        bars: bars(),
    }));
    fits(&FromWorker::Returned { attempts: vec![ATTEMPT; attempts] });
    fits(&ToWorker::Registered {
        store: u64::MAX,
        epoch: u64::MAX,
        heartbeat: LONG,
        lost_after: LONG,
        closed: vec![ATTEMPT; attempts],
    });
    fits(&ToWorker::Start(Start {
        attempt: ATTEMPT,
        execution: u32::MAX,
        application: owned().application,
        owner: owned().owner,
        bundle: BundleRef::Installed(text(BUNDLE_NAME_BYTES)),
        service: text(SERVICE_NAME_BYTES),
        options: options(),
        checkpoint_bytes: Some(u32::MAX),
        progress_rtt_test: LONG,
    }));
}

#[test]
fn the_most_that_a_command_says_and_hears_is_within_bounds() {
    // Two MiB of arguments, each an id of 18 characters at least and its zero.
    fits(&FromCommand::Cancel { jobs: vec![JOB; (2 << 20) / 19] });
    fits(&ToCommand::Cancelled { unknown: vec![JOB; (2 << 20) / 19], ended: Vec::new() });
    let row = JobRow {
        job_id: JOB,
        application_id: owned().application,
        user: owned().owner,
        service: text(SERVICE_NAME_BYTES),
        label: text(LABEL_BYTES),
        state: JobState::TimedOut,
        attempt: u32::MAX,
        worker: Some(WorkerId(u64::MAX)),
        pid: Some(u32::MAX),
        reason: text(FAILURE_MESSAGE_BYTES),
    };
    fits(&ToCommand::Jobs { rows: vec![row; ROWS], last: true });
    let row = WorkerRow {
        worker: WorkerId(u64::MAX),
        host: text(HELLO_HOST_BYTES),
        pid: u32::MAX,
        slots: SLOTS,
        running: SLOTS,
        state: WorkerState::Suspect,
        silent: LONG,
    };
    fits(&ToCommand::Workers { rows: vec![row; ROWS], last: true });
    let row = ApplicationRow {
        application_id: owned().application,
        user: owned().owner,
        connected: false,
        away_s: Some(f64::MAX),
        queued: u64::MAX,
        running: u64::MAX,
        finished: u64::MAX,
        failed: u64::MAX,
        cancelled: u64::MAX,
    };
    fits(&ToCommand::Applications { rows: vec![row; ROWS], last: true });
}

#[test]
fn the_most_that_a_host_says_and_hears_is_within_bounds() {
    let inline = || Payload::Inline(vec![7; INLINE_BODY_BYTES]);
    let env = vec![(text(64), text(ENV_BYTES / ENV_VARIABLES - 64)); ENV_VARIABLES];
    fits(&ToHost::Start(StartAttempt {
        attempt: ATTEMPT,
        execution: u32::MAX,
        service: text(SERVICE_NAME_BYTES),
        payload: inline(),
        directory: text(4_095).into(),
        spool_file: text(4_095).into(),
        env,
        checkpoint: Some(inline()),
        grace: LONG,
        run_timeout: Some(LONG),
        progress_timeout: Some(LONG),
        memory_limit: Some(u64::MAX),
        lease_until: Some(u64::MAX),
        notes: vec![7; 4_096],
    }));
    let some = bars()[..BARS_PER_NOTICE].to_vec();
    fits(&FromHost::Bars { attempt: ATTEMPT, bars: some });
    fits(&FromHost::Checkpoint { attempt: ATTEMPT, state: Payload::Inline(vec![7; CHECKPOINT_BYTES]) });
    fits(&FromHost::Output { attempt: ATTEMPT, stderr: true, text: vec![7; OUTPUT_BYTES] });
    fits(&FromHost::Ended {
        attempt: ATTEMPT,
        end: AttemptEnd::Failed(failure()),
        output: Output::Inline(vec![7; INLINE_BODY_BYTES]),
        ran: LONG,
        peak_memory_bytes: u64::MAX,
        region: Some(u32::MAX),
    });
    let services = vec![text(SERVICE_NAME_BYTES); SERVICES_PER_BUNDLE];
    fits(&FromHost::Welcome { version: u16::MAX, pid: u32::MAX, services, forks: true });
}

#[test]
fn the_most_that_is_said_of_bars_is_within_bounds() {
    fits(&FromReporter::Batch { applications: vec![(owned(), vec![update()]); BARS_PER_BATCH] });
    fits(&FromReporter::Ended { attempts: vec![(owned(), ATTEMPT); BARS_PER_BATCH] });
    fits(&FromReporter::Ping { number: u64::MAX });
    fits(&ToReporter::Pong { number: u64::MAX });
    fits(&FromWatcher::Watch { application: owned().application });
    fits(&ToWatcher::Bars { updates: vec![update(); BARS_PER_BATCH] });
}

/// Counts what the thread that asks has allocated.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is left to the system's allocator, which keeps the contract.
#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has no counter any more.
        let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + layout.size()));
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Bytes that are allocated while this is refused.
fn refused<T: Head>(bytes: &[u8]) -> usize {
    let before = ALLOCATED.get();
    let error = decode::<T>(bytes).err();
    let allocated = ALLOCATED.get() - before;
    assert!(error.is_some(), "{} of {} bytes is taken", T::NAME, bytes.len());
    allocated
}

fn refused_by_all(bytes: &[u8]) {
    let allocated = [
        refused::<FromApplication>(bytes),
        refused::<ToApplication>(bytes),
        refused::<FromWorker>(bytes),
        refused::<ToWorker>(bytes),
        refused::<FromCommand>(bytes),
        refused::<ToCommand>(bytes),
        refused::<FromReporter>(bytes),
        refused::<ToReporter>(bytes),
        refused::<FromWatcher>(bytes),
        refused::<ToWatcher>(bytes),
    ];
    assert!(allocated.iter().all(|&allocated| allocated < 1_024), "{allocated:?}");
}

/// A message of which everything is right up to this field, whose value is these bytes.
fn with_field(variant: &str, field: &str, value: &[u8]) -> Vec<u8> {
    let text = |text: &str| [&[0xa0 | text.len() as u8], text.as_bytes()].concat();
    [&[0x81], &text(variant)[..], &[0x81], &text(field), value].concat()
}

#[test]
fn what_is_announced_costs_nothing() {
    let most = [0xff; 4];
    for header in [0xdd, 0xdf, 0xc6, 0xdb] {
        let bomb = [&[header], &most[..]].concat();
        refused_by_all(&bomb);
        refused_by_all(&with_field("Submit", "options", &bomb));
        refused_by_all(&with_field("Attach", "services", &bomb));
        refused_by_all(&with_field("Register", "installed", &bomb));
        refused_by_all(&with_field("Batch", "applications", &bomb));
    }
}

#[test]
fn nesting_costs_nothing() {
    refused_by_all(&vec![0x91; 5_000_000]);
    refused_by_all(&with_field("Submit", "options", &vec![0x91; 1_000_000]));
}

#[test]
fn a_million_empty_strings_cost_nothing() {
    let mut strings = vec![0xdd];
    strings.extend(1_000_000_u32.to_be_bytes());
    strings.resize(strings.len() + 1_000_000, 0xa0);
    refused_by_all(&with_field("Attach", "services", &strings));
    refused_by_all(&with_field("Register", "installed", &strings));
    refused_by_all(&with_field("Submit", "options", &strings));
}

#[test]
fn what_is_within_bounds_costs_little_more_than_its_bounds() {
    // The smallest values that become the largest things: options without any field.
    let mut options = vec![0xdd];
    let count = FROM_APPLICATION.values as u32 - 100;
    options.extend(count.to_be_bytes());
    options.resize(options.len() + count as usize, 0x80);
    let allocated = refused::<FromApplication>(&with_field("Submit", "options", &options));
    // A vector that grows has been half as large, and a quarter, and so on.
    assert!(allocated < 3 * count as usize * size_of::<JobOptions>(), "{allocated}");
    assert!(allocated < 32 << 20, "{allocated}");
}
