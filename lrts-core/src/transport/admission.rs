//! Who is let in to say hello: bounds on connections in total, for each address, and of strangers.
//!
//! Pure. A *stranger* has shown no key yet, or has to wait until it may come in with it, and wasn't welcomed without: so it costs
//! its address nothing to be one. Where there are too many, the one that has been silent longest makes room: where cores are idle,
//! an honest peer needs a round trip and milliseconds for its handshake, so it is gone from their number before newer ones can
//! push it out. One that is pushed out comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use super::ConnectionId;
use crate::limits::{REFUSAL_CONNECTIONS, STRANGERS, STRANGERS_PER_ADDRESS};

/// Counts connections.
#[derive(Debug)]
pub(crate) struct Admission {
    connections: usize,
    connections_per_address: usize,
    strangers: usize,
    /// All connections and where they come from.
    all: BTreeMap<ConnectionId, IpAddr>,
    /// Those of strangers, oldest first.
    unknown: BTreeSet<ConnectionId>,
    addresses: BTreeMap<IpAddr, Address>,
}

#[derive(Debug, Default)]
struct Address {
    all: usize,
    unknown: BTreeSet<ConnectionId>,
}

/// The connection must be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum TooMany {
    #[error("too many connections: at most {0} are held")]
    All(usize),
    #[error("too many connections from one address: at most {0} are held")]
    OfAddress(usize),
}

impl Admission {
    /// For a server that can hold so many connections. One address may have three quarters of them, strangers one.
    pub(crate) fn new(connections: usize) -> Self {
        Self {
            connections,
            connections_per_address: (connections - connections / 4).max(1),
            strangers: STRANGERS.min(connections / 4).max(1),
            all: BTreeMap::new(),
            unknown: BTreeSet::new(),
            addresses: BTreeMap::new(),
        }
    }

    /// Whether a connection is beyond what the server can serve, in all or for its address; some more are let in to be told so.
    pub(crate) fn is_full(&self, connection: ConnectionId) -> bool {
        let address = self.all.get(&connection).and_then(|from| self.addresses.get(from));
        self.all.len() > self.connections
            || address.is_some_and(|address| address.all > self.connections_per_address)
    }

    /// Takes in a stranger. Gives another that must make room for it, if any.
    pub(crate) fn admit(&mut self, new: ConnectionId, from: IpAddr) -> Result<Option<ConnectionId>, TooMany> {
        let from = network_of(from);
        let address = self.addresses.entry(from).or_default();
        // Strangers make room for strangers; who has shown a key holds its place.
        let oldest = if address.unknown.len() >= STRANGERS_PER_ADDRESS.min(self.strangers) {
            address.unknown.first().copied()
        } else if self.unknown.len() >= self.strangers {
            self.unknown.first().copied()
        } else {
            None
        };
        let refusal = if oldest.is_some() {
            None
        } else if self.all.len() >= self.connections.saturating_add(REFUSAL_CONNECTIONS) {
            Some(TooMany::All(self.connections))
        } else if address.all >= self.connections_per_address.saturating_add(REFUSAL_CONNECTIONS) {
            Some(TooMany::OfAddress(self.connections_per_address))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            if address.all == 0 {
                self.addresses.remove(&from);
            }
            return Err(refusal);
        }
        address.all += 1;
        address.unknown.insert(new);
        self.unknown.insert(new);
        self.all.insert(new, from);
        if let Some(oldest) = oldest {
            self.gone(oldest);
        }
        Ok(oldest)
    }

    /// A stranger has come in with its key, or was welcomed without. To call it so again changes nothing.
    pub(crate) fn known(&mut self, connection: ConnectionId) {
        if let Some(from) = self.all.get(&connection)
            && self.unknown.remove(&connection)
            && let Some(address) = self.addresses.get_mut(from)
        {
            address.unknown.remove(&connection);
        }
    }

    /// A connection has ended. Unknown ones are ignored.
    pub(crate) fn gone(&mut self, connection: ConnectionId) {
        let Some(from) = self.all.remove(&connection) else { return };
        self.unknown.remove(&connection);
        if let Some(address) = self.addresses.get_mut(&from) {
            address.all -= 1;
            address.unknown.remove(&connection);
            if address.all == 0 {
                self.addresses.remove(&from);
            }
        }
    }
}

/// What counts as one address: of IPv6 the network of 64 bits, of which any host has all addresses.
pub(super) fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => address.into(),
            None => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn id(number: u64) -> ConnectionId {
        ConnectionId(number)
    }

    #[test]
    fn a_flood_of_strangers_pushes_out_its_own_oldest_only() {
        let mut admission = Admission::new(100_000);
        admission.admit(id(1), THERE).unwrap();
        for number in 2..2 + STRANGERS_PER_ADDRESS as u64 {
            assert_eq!(admission.admit(id(number), HERE), Ok(None));
        }
        assert_eq!(admission.admit(id(100_000), HERE), Ok(Some(id(2))));
        admission.known(id(3));
        assert_eq!(admission.admit(id(100_001), HERE), Ok(None), "a welcomed peer is no stranger");
        assert_eq!(admission.admit(id(100_002), HERE), Ok(Some(id(4))));
    }

    #[test]
    fn strangers_of_many_addresses_are_bounded_together() {
        let mut admission = Admission::new(100_000);
        let address = |number: u64| IpAddr::from([10, 1, (number >> 8) as u8, number as u8]);
        for number in 0..STRANGERS as u64 {
            assert_eq!(admission.admit(id(number), address(number)), Ok(None));
        }
        assert_eq!(admission.admit(id(100_000), HERE), Ok(Some(id(0))));
    }

    #[test]
    fn one_address_can_not_take_all_connections() {
        let mut admission = Admission::new(100);
        let mut number = 0;
        let refused = loop {
            number += 1;
            match admission.admit(id(number), HERE) {
                Ok(evicted) => assert_eq!(evicted, None),
                Err(refused) => break refused,
            }
            assert_eq!(admission.is_full(id(number)), number > 75);
            admission.known(id(number));
        };
        assert_eq!(refused, TooMany::OfAddress(75));
        assert_eq!(admission.admit(id(1_000), THERE), Ok(None));
        admission.gone(id(1));
        assert_eq!(admission.admit(id(1_001), HERE), Ok(None));
    }

    #[test]
    fn nothing_is_left_of_those_who_are_gone() {
        let mut admission = Admission::new(8);
        for number in 0..1_000 {
            let from = IpAddr::from([10, 1, (number >> 8) as u8, number as u8]);
            admission.admit(id(number), from).unwrap();
            if number % 2 == 0 {
                admission.known(id(number));
            }
            admission.gone(id(number));
            admission.gone(id(number));
        }
        assert!(admission.all.is_empty() && admission.unknown.is_empty() && admission.addresses.is_empty());
    }

    #[test]
    fn the_addresses_of_an_ipv6_host_are_one() {
        let address = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:10.0.0.1"), HERE);
    }
}
