/// Takes an input apart. Any bytes are some sequence of numbers and parts; at the end there are zeros and empty parts.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// The whole input.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    /// The next eight bytes as a number.
    pub fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// The next part: two bytes of length, then so many bytes or what is left.
    pub fn part(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()) << 8 | usize::from(self.byte());
        let length = length.min(self.0.len());
        self.0.split_off(..length).expect("it is no longer than what is left")
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Puts an input together, as [`Input`] takes it apart.
#[derive(Clone, Debug, Default)]
pub struct Script(Vec<u8>);

impl Script {
    /// An empty input.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a byte.
    #[must_use]
    pub fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// Adds a part.
    ///
    /// # Panics
    ///
    /// If it is longer than 65,535 bytes.
    #[must_use]
    pub fn part(mut self, part: &[u8]) -> Self {
        let length = u16::try_from(part.len()).expect("parts are short");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.rest(part)
    }

    /// Adds what comes last.
    #[must_use]
    pub fn rest(mut self, rest: &[u8]) -> Self {
        self.0.extend_from_slice(rest);
        self
    }

    /// The input.
    pub fn bytes(self) -> Vec<u8> {
        self.0
    }
}
