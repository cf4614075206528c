//! What was changed since it was written, and what never was a store.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use redb::{Database, ReadableTable};

use super::kinds::{everything, open};
use super::*;
use crate::store::{Damage, DurableStore, StoreError, tables};

#[test]
fn a_flipped_bit_in_a_body_is_told_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    let payloads = [bytes(1, 200_000), bytes(2, 200_000)];
    commit(&mut store, vec![submit(SESSION, 1, &payloads)]);
    let file = directory.path().join("bodies/0000000000000000.bodies");
    let segment = File::options().read(true).write(true).open(&file).unwrap();
    let mut byte = [0];
    segment.read_exact_at(&mut byte, 300_000).unwrap();
    segment.write_all_at(&[byte[0] ^ 4], 300_000).unwrap();
    let error = wait(store.payload(SESSION.job(2), None)).unwrap_err();
    let ReadError::Damaged(Damage::Segment { file: damaged, offset }) = error else { panic!("{error}") };
    assert_eq!((damaged, offset), (file, 200_004), "where the second payload begins");
    assert_eq!(wait(store.payload(SESSION.job(1), None)).unwrap().payload, payloads[0]);
}

#[test]
fn a_damaged_row_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    commit(&mut store, everything());
    drop(store);
    {
        let database = Database::open(directory.path().join("records.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut jobs = transaction.open_table(tables::JOBS).unwrap();
            let key = tables::job_key(SESSION.job(6));
            let mut row = jobs.get(key).unwrap().unwrap().value().to_vec();
            row[12] ^= 1;
            jobs.insert(key, row.as_slice()).unwrap();
        }
        transaction.commit().unwrap();
    }
    let error = DurableStore::open(directory.path()).unwrap_err();
    let StoreError::Damaged(Damage::Row { table, key }) = error else { panic!("{error}") };
    assert_eq!((table, key), ("jobs", SESSION.job(6).to_string()));
}

#[test]
fn a_store_has_one_scheduler_and_what_is_no_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    assert!(matches!(DurableStore::open(directory.path()), Err(StoreError::InUse { .. })));
    drop(store);
    fs::write(directory.path().join("records.redb"), vec![b'x'; 100_000]).unwrap();
    let error = DurableStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged(Damage::Database { .. })), "{error:?}");
}

#[test]
fn a_bit_flipped_anywhere_in_the_database_is_never_taken_for_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    commit(&mut store, everything());
    drop(store);
    let original = ageless(open(directory.path()).load().unwrap());
    let file = directory.path().join("records.redb");
    let clean = fs::read(&file).unwrap();
    let mut random = fastrand::Rng::new();
    let mut refused = 0;
    while refused < 5 {
        let at = random.usize(..clean.len());
        let mut damaged = clean.clone();
        damaged[at] ^= 1 << random.u8(..8);
        fs::write(&file, &damaged).unwrap();
        match DurableStore::open(directory.path()) {
            // Nothing is kept at that place.
            Ok(mut store) => assert_eq!(ageless(store.load().unwrap()), original, "at {at}"),
            Err(error) => {
                assert!(matches!(error, StoreError::Damaged(_)), "{error:?} at {at}");
                refused += 1;
            }
        }
    }
}
