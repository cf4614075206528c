//! The program itself as something to ship: digest, pieces, and what it can run on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use crate::ids::BundleDigest;
use crate::limits::{BUNDLE_CHUNK_BYTES, BUNDLE_RATIO};
use crate::spec::Platform;

/// Opens this process's own executable. The descriptor goes on reading the original file, even when a compiler replaces it
/// meanwhile.
///
/// # Errors
///
/// Those of `open(2)`.
pub fn open_own_executable() -> io::Result<File> {
    File::open("/proc/self/exe")
}

/// Reads a whole file through its descriptor and returns its digest and length.
///
/// # Errors
///
/// Those of `read(2)`.
pub fn digest_file(file: &File) -> io::Result<(BundleDigest, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUNDLE_CHUNK_BYTES];
    let mut offset = 0;
    loop {
        let read = file.read_at(&mut buffer, offset)?;
        if read == 0 {
            return Ok((BundleDigest(*hasher.finalize().as_bytes()), offset));
        }
        hasher.update(&buffer[..read]);
        offset += read as u64;
    }
}

/// Reads the piece at `offset`: [`BUNDLE_CHUNK_BYTES`], or what is left; empty at the end. Returns it compressed, and its
/// length before.
///
/// # Errors
///
/// Those of `read(2)`.
pub fn read_chunk(file: &File, offset: u64) -> io::Result<(Bytes, u32)> {
    let mut buffer = vec![0; BUNDLE_CHUNK_BYTES];
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    // Level 1: a debug build shrinks to a fifth at the speed of a fast disk.
    let compressed = zstd::bulk::compress(&buffer[..filled], 1)?;
    Ok((compressed.into(), filled as u32))
}

/// How long the piece at `offset` of a bundle of `total` bytes is: [`BUNDLE_CHUNK_BYTES`], or what is left.
pub fn chunk_bytes(offset: u64, total: u64) -> u32 {
    let left = total.saturating_sub(offset).min(BUNDLE_CHUNK_BYTES as u64);
    u32::try_from(left).expect("a piece is small")
}

/// Whether a compressed piece may be one of `bytes` bytes, as far as its first bytes tell. Nothing is allocated.
///
/// # Errors
///
/// `InvalidData` if it can't: one of the two lengths is out of bounds, they don't go together, or the piece itself names
/// another one.
pub fn check_chunk(compressed: &[u8], bytes: u32) -> io::Result<()> {
    let invalid = |text| Err(io::Error::new(io::ErrorKind::InvalidData, text));
    let length = bytes as usize;
    if length > BUNDLE_CHUNK_BYTES || compressed.len() > zstd::zstd_safe::compress_bound(length) {
        return invalid("an oversized piece of a bundle");
    }
    if length > compressed.len().saturating_mul(BUNDLE_RATIO) {
        return invalid("a piece of a bundle that would grow out of proportion");
    }
    match zstd::zstd_safe::get_frame_content_size(compressed) {
        Ok(Some(named)) if named == u64::from(bytes) => Ok(()),
        Ok(_) => invalid("a piece of a bundle with another length than announced"),
        Err(_) => invalid("a piece of a bundle that isn't compressed"),
    }
}

/// Restores a piece of exactly `bytes` bytes. No more than these are allocated, whatever the piece asks for.
///
/// # Errors
///
/// `InvalidData` if it isn't one, see [`check_chunk`].
pub fn restore_chunk(compressed: &[u8], bytes: u32) -> io::Result<Vec<u8>> {
    check_chunk(compressed, bytes)?;
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let length = bytes as usize;
    let restored = zstd::bulk::decompress(compressed, length).map_err(invalid)?;
    if restored.len() != length {
        return Err(invalid(io::Error::other("a piece of a bundle with another length than announced")));
    }
    Ok(restored)
}

impl Platform {
    /// What this process runs on.
    pub fn current() -> Self {
        let environment = if cfg!(target_env = "gnu") { "gnu" } else { "musl" };
        Self { target: format!("{}-linux-{environment}", std::env::consts::ARCH), glibc: glibc_version() }
    }

    /// Whether a program built for `program` may start here. A newer C library runs what an older one does, not the other
    /// way round.
    pub fn runs(&self, program: &Platform) -> bool {
        let same_machine = self.target.split('-').next() == program.target.split('-').next();
        let library = match program.glibc {
            Some(needed) => self.glibc.is_some_and(|here| here >= needed),
            None => true,
        };
        same_machine && library
    }
}

#[cfg(target_env = "gnu")]
fn glibc_version() -> Option<(u32, u32)> {
    // SAFETY: takes nothing and returns a static, zero-terminated text.
    #[expect(unsafe_code, reason = "the only way to ask glibc for its version")]
    let text = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
    let (major, minor) = text.to_str().ok()?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

#[cfg(not(target_env = "gnu"))]
fn glibc_version() -> Option<(u32, u32)> {
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn pieces_of_a_file_make_the_file_again() {
        let content: Vec<u8> = (0..BUNDLE_CHUNK_BYTES as u32 + 5_000).map(|i| (i % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let (digest, length) = digest_file(&file).unwrap();
        assert_eq!(length, content.len() as u64);
        assert_eq!(digest.0, *blake3::hash(&content).as_bytes());

        let mut restored = Vec::new();
        loop {
            let (piece, bytes) = read_chunk(&file, restored.len() as u64).unwrap();
            if bytes == 0 {
                break;
            }
            restored.extend(restore_chunk(&piece, bytes).unwrap());
        }
        assert!(restored == content);
    }

    #[test]
    fn pieces_that_lie_about_their_length_are_refused() {
        let piece = zstd::bulk::compress(&[0; 1_000], 1).unwrap();
        assert!(restore_chunk(&piece, 999).is_err());
        assert!(restore_chunk(&piece, 1_001).is_err());
        assert!(restore_chunk(&piece, u32::MAX).is_err());
        assert!(restore_chunk(b"nonsense", 10).is_err());
        assert!(restore_chunk(b"", 0).is_err());
        assert!(restore_chunk(&piece[..piece.len() - 1], 1_000).is_err());
        // Two pieces in one.
        assert!(restore_chunk(&[&piece[..], &piece].concat(), 1_000).is_err());
    }

    #[test]
    fn a_piece_that_would_grow_out_of_proportion_is_refused_by_its_first_bytes() {
        let most = BUNDLE_CHUNK_BYTES as u32;
        let zeros = zstd::bulk::compress(&vec![0; BUNDLE_CHUNK_BYTES], 1).unwrap();
        assert_eq!(restore_chunk(&zeros, most).unwrap().len(), BUNDLE_CHUNK_BYTES, "{} bytes", zeros.len());
        let mut noise = vec![0; BUNDLE_CHUNK_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let packed = zstd::bulk::compress(&noise, 1).unwrap();
        assert!(packed.len() > BUNDLE_CHUNK_BYTES && restore_chunk(&packed, most).unwrap() == noise);

        let huge = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
        for announced in [1, most, 64 << 20] {
            assert!(check_chunk(&huge, announced).is_err(), "{announced}");
        }
        // Frames that claim 1 MiB, 16 EiB less one, and nothing, that one with a window of 2 GiB.
        let claims = |header: &[u8]| [&[0x28, 0xb5, 0x2f, 0xfd], header, &[0; 40]].concat();
        let mebibyte = claims(&[0xa0, 0, 0, 0x10, 0]);
        assert!(check_chunk(&mebibyte, most).is_ok(), "the claim is read where it is");
        assert!(check_chunk(&mebibyte, 5).is_err() && restore_chunk(&mebibyte, most).is_err());
        assert!(check_chunk(&mebibyte[..9], most).is_err(), "so few bytes can't be as much");
        assert!(check_chunk(&claims(&[0xe0, 255, 255, 255, 255, 255, 255, 255, 255]), most).is_err());
        assert!(check_chunk(&claims(&[0x00, 0xa8]), most).is_err());
        let padded = [&packed[..], &[0; 5_000]].concat();
        assert!(check_chunk(&padded, most).is_err());
    }

    #[test]
    fn newer_libraries_run_older_programs() {
        let platform = |target: &str, glibc| Platform { target: target.into(), glibc };
        let here = platform("x86_64-linux-gnu", Some((2, 36)));
        assert!(here.runs(&platform("x86_64-linux-gnu", Some((2, 31)))));
        assert!(!here.runs(&platform("x86_64-linux-gnu", Some((2, 41)))));
        assert!(!here.runs(&platform("aarch64-linux-gnu", Some((2, 31)))));
        assert!(here.runs(&platform("x86_64-linux-musl", None)));
        assert!(Platform::current().runs(&Platform::current()));
    }
}
