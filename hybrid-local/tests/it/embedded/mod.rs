mod child;
mod crash;
mod disk;
mod folder;
mod model;
mod outbox;
mod queue;
mod records;
#[path = "../../../../hybrid-core/tests/support/small_disk.rs"]
mod small_disk;
mod staging;
mod vectors;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use hybrid_core::Key;

/// xorshift64* (Vigna 2014): seeded choices that are the same in each run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % end
    }
}

/// Bytes that tell from themselves whether they are whole: up to 60 kB that follow from their name.
pub(crate) fn content(name: &str) -> Vec<u8> {
    let mut random = Random::new(name.bytes().fold(7, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte)));
    let length = random.below(60_000);
    (0..length).map(|_| random.below(256) as u8).collect()
}

pub(crate) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// How many files and folders the processes that used a store have left behind.
pub(crate) fn temporary_files(store: &Path) -> usize {
    fs::read_dir(store.join(".hybrid~tmp")).into_iter().flatten().count()
}
