//! Rows and files of a store as a disk may give them back, with checksums that are right: what is behind them must do no harm either.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use lrts_core::fuzz::Input;
use lrts_core::private_dir::PrivateDir;
use lrts_core::protocol::codec;
use lrts_core::protocol::progress::BarRecord;
use redb::backends::InMemoryBackend;
use redb::{Database, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::body::{Layout, seal, split_output, unseal_bytes};
use super::segments::{Segments, segment_file};
use super::tables::{self, KeyedRow, Tables};
use super::{load, tables::JobKey};
use crate::record::{ApplicationImage, LoadedJob, SessionImage, WorkerImage};

/// One row of any table.
pub(crate) fn row(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let table = input.byte();
    let key: JobKey = (input.number(), input.number());
    let row = seal(input.rest().to_vec());
    match table % 8 {
        0 => written_anew::<ApplicationImage>(&row),
        1 => written_anew::<SessionImage>(&row),
        2 => written_anew::<WorkerImage>(&row),
        3 => {
            let Ok(submit) = tables::decode_submit(key, &row) else { return };
            let submitted = submit.submitted(key);
            let layout = Layout::of(&submitted);
            assert_eq!(submitted.jobs.len() as u64, submit.jobs());
            for (sequence, kept) in (key.1..).zip(submitted.kept()) {
                assert_eq!(layout.range(sequence).is_some(), kept);
            }
        }
        4 => {
            if let Ok(keyed) = tables::decode::<KeyedRow>("keyed", "", &row) {
                assert_eq!(keyed.submitted().jobs.len(), 1);
            }
        }
        5 => {
            if let Ok((_, LoadedJob::Known(image))) = tables::decode_job(key, &row) {
                let (_, again) = tables::encode_job(&image);
                let (_, known) = tables::decode_job(key, &again).expect("what was encoded is decoded");
                assert_eq!(known, LoadedJob::Known(image));
            }
        }
        6 => {
            if let Ok(place) = tables::decode_place((0, 0, 0, 0), &row) {
                assert_eq!(tables::encode_place(place), row);
            }
        }
        _ => {
            let body = unseal_bytes(&Bytes::from(row)).expect("it was sealed");
            let _ = codec::decode_local::<Vec<BarRecord>>(&body);
            if let Some((stdout, stderr)) = split_output(body.clone()) {
                assert_eq!(stdout.len() + stderr.len() + size_of::<u64>(), body.len());
            }
        }
    }
}

fn written_anew<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(row: &[u8]) {
    if let Ok(image) = tables::decode::<T>("", "", row) {
        let again = tables::encode(&image);
        assert_eq!(tables::decode::<T>("", "", &again).expect("what was encoded is decoded"), image);
    }
}

/// A whole database, and the files that it refers to.
pub(crate) fn whole(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let database =
        Database::builder().create_with_backend(InMemoryBackend::new()).expect("an empty database");
    let transaction = database.begin_write().expect("the only writer");
    fill(&transaction, &mut input);
    transaction.commit().expect("memory");
    let Ok(content) = load::load(Path::new("memory"), &database) else { return };
    if content.places.is_empty() {
        return;
    }
    let directory = PrivateDir::create(&std::env::temp_dir(), "fuzz").expect("a directory");
    let first = content.places[0];
    fs::write(segment_file(directory.path(), first.segment), vec![7; 4_096]).expect("a file");
    if let Ok(segments) = Segments::open(directory.path().to_owned(), content.places) {
        drop(segments);
        let length = fs::metadata(segment_file(directory.path(), first.segment)).expect("a file").len();
        assert!(length <= 4_096);
    }
}

/// Puts rows into the tables: of each its table, its key and what is in it.
fn fill(transaction: &WriteTransaction, input: &mut Input<'_>) {
    let mut tables = Tables::open(transaction).expect("an empty database");
    while !input.is_empty() {
        let (table, whole) = (input.byte(), input.byte());
        let key: JobKey = (input.number(), input.number());
        let row = match whole {
            0 => input.part().to_vec(),
            _ => seal(input.part().to_vec()),
        };
        let row = row.as_slice();
        let inserted = match table % 8 {
            0 => tables.applications.insert(&*String::from_utf8_lossy(&key.0.to_be_bytes()), row).map(drop),
            1 => tables.sessions.insert(key.0, row).map(drop),
            2 => tables.workers.insert(key.0, row).map(drop),
            3 => tables.submits.insert(key, row).map(drop),
            4 => tables.keyed.insert(key, row).map(drop),
            5 => tables.jobs.insert(key, row).map(drop),
            6 => tables.large.insert((0, key.0, key.1, 0), row).map(drop),
            _ => tables.meta.insert(tables::BATCH, row).map(drop),
        };
        inserted.expect("memory");
    }
}
