//! Whatever happens to NICs: taken, given back, unplugged, exchanged, in any order.

use super::*;

/// What happens to one of three NICs. Indexes are few, so that they are used again.
#[derive(Clone, Copy, Debug)]
enum NicEvent {
    /// A pod gets it.
    Taken,
    /// It is on the node: plugged in, or back from its pod, which is gone.
    Here(u32),
    /// It is unplugged, on the node or in its pod.
    Unplugged,
    /// It is unplugged, and another one is plugged in at its address.
    Exchanged(u32),
    /// Its pod is gone.
    Freed,
    /// Another link comes, or goes.
    Stranger(u32, bool),
    /// The agent starts again.
    Restart,
}

fn fate() -> impl Strategy<Value = NicEvent> {
    let index = || 2..7_u32;
    prop_oneof![
        3 => Just(NicEvent::Taken),
        3 => index().prop_map(NicEvent::Here),
        1 => Just(NicEvent::Unplugged),
        1 => index().prop_map(NicEvent::Exchanged),
        1 => Just(NicEvent::Freed),
        2 => (index(), any::<bool>()).prop_map(|(index, comes)| NicEvent::Stranger(index, comes)),
        1 => Just(NicEvent::Restart),
    ]
}

/// The node as it is, whatever the agent makes of it.
#[derive(Default)]
struct Nics {
    /// How often the NIC at a slot was exchanged.
    exchanged: BTreeMap<u8, u8>,
    /// The device that a pod has at an address.
    pods: BTreeMap<String, DeviceId>,
}

impl Nics {
    fn nic(&self, index: u32, slot: u8) -> Link {
        let mut link = nic(index, &format!("eth{slot}"), slot);
        let exchanged = self.exchanged.get(&slot).copied().unwrap_or_default();
        link.permanent_mac = Some([2, 0, 0, 0, exchanged, slot].try_into().unwrap());
        link
    }

    fn happens(&mut self, engine: &mut Engine, slot: u8, fate: NicEvent) {
        let address = format!("0000:00:{slot:02x}.0");
        let here = engine
            .world
            .inventory
            .present()
            .find(|link| link.hardware.pci_address.as_deref() == Some(&address));
        let here = here.map(|link| link.ifindex);
        let leave = |engine: &mut Engine| {
            if let Some(index) = here {
                let _ = engine.world.inventory.remove(index);
            }
            engine.world.in_pods.retain(|_, in_pod| in_pod.nic.pci.to_string() != address);
        };
        match fate {
            NicEvent::Taken => {
                let offered = list(engine).contains(&(address.clone(), true));
                if offered && here.is_some() && !self.pods.contains_key(&address) {
                    self.pods.insert(address.clone(), device(engine, &address));
                    take(engine, &address);
                }
            }
            NicEvent::Here(index) if here.is_none() && !engine.world.inventory.has(index) => {
                leave(engine);
                let _ = engine.world.inventory.apply(self.nic(index, slot));
            }
            NicEvent::Exchanged(index) if !engine.world.inventory.has(index) => {
                leave(engine);
                *self.exchanged.entry(slot).or_default() += 1;
                let _ = engine.world.inventory.apply(self.nic(index, slot));
            }
            NicEvent::Unplugged => leave(engine),
            NicEvent::Freed
                if !engine.world.in_pods.values().any(|in_pod| in_pod.nic.pci.to_string() == address) =>
            {
                if let Some(device) = self.pods.remove(&address) {
                    engine.world.in_use.remove(&device);
                }
            }
            NicEvent::Stranger(index, true) if !engine.world.inventory.has(index) => {
                let _ = engine.world.inventory.apply(link(index, &format!("veth{index}"), Kind::Veth));
            }
            NicEvent::Stranger(index, false) => {
                if engine.world.inventory.get(index).is_some_and(|link| link.kind == Kind::Veth) {
                    let _ = engine.world.inventory.remove(index);
                }
            }
            NicEvent::Restart => {
                *engine = restarted(engine, "boot", engine.world.inventory.present().cloned());
            }
            NicEvent::Here(_) | NicEvent::Exchanged(_) | NicEvent::Freed | NicEvent::Stranger(..) => {}
        }
    }
}

proptest! {
    /// Whatever happens: each address once, a pod's device is the same until the pod is gone, a NIC in a pod is healthy,
    /// and a free one is on offer.
    #[test]
    fn what_a_pod_has_stays_its_own_whatever_happens_to_nics_and_indexes(
        fates in prop::collection::vec((0xa..0xd_u8, fate()), 0..40)
    ) {
        let mut engine = engine(vec![pool("nics", &json!({"type": "HostDevice"}))]);
        let mut world = Nics::default();
        for (slot, fate) in fates {
            world.happens(&mut engine, slot, fate);
            let listed = list(&mut engine);
            let addresses: BTreeSet<&String> = listed.iter().map(|(address, _)| address).collect();
            prop_assert_eq!(addresses.len(), listed.len(), "an address twice: {:?}", listed);
            for (address, had) in &world.pods {
                prop_assert!(addresses.contains(address), "{} of a pod is in no list after {:?}", address, fate);
                prop_assert_eq!(&device(&engine, address), had);
            }
            for in_pod in engine.world.in_pods.values() {
                prop_assert!(listed.contains(&(in_pod.nic.pci.to_string(), true)), "{:?}", listed);
            }
            for link in engine.world.inventory.present().filter(|link| link.kind == Kind::Physical) {
                let address = link.hardware.pci_address.clone().unwrap();
                if !world.pods.contains_key(&address) {
                    prop_assert!(listed.contains(&(address, true)), "{:?}", listed);
                }
            }
        }
    }
}
