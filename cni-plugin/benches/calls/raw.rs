//! Requests to the kernel without a plugin: what no plugin can avoid, and the classic way to give a pod a link.

use macvtap::kernel::{Home, Kernel, NewLink, Place, Rtnl};
use macvtap::link::{Change, Macvtap};
use macvtap::mode::Mode;
use macvtap::netns::Netns;
use macvtap::paths::Paths;
use macvtap::table_file;
use std::path::Path;

/// The classic way: the link is made in the node's namespace, moved into the pod's, renamed there, and set up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is down while it is moved.
    Down,
    /// It is up already when it is made, as by a device plugin that makes it when the device is allocated.
    Up,
}

impl Way {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Down, Self::Up];

    /// The name of its figure.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Down => "cni_add_classic_link_down",
            Self::Up => "cni_add_classic_link_up",
        }
    }
}

/// Sockets that are open already, and the link of a device that no call of a plugin is about.
pub(crate) struct Raw {
    kernel: Rtnl,
    node: Rtnl,
    link: Macvtap,
}

impl Raw {
    /// For the device with this number.
    pub(crate) fn new(pod: &Path, number: usize) -> Self {
        let table = table_file::load_current(&Paths::default()).unwrap();
        let device = table.macvtap(&format!("dataplaneMvp{number}").parse().unwrap()).unwrap();
        let link = Macvtap {
            lower: device.link.ifindex,
            index: device.ifindex,
            name: "raw1".parse().unwrap(),
            mode: Mode::Bridge,
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            mtu: Some(1400),
            promiscuous: false,
            all_multicast: true,
        };
        let kernel = Rtnl::with_pod(Netns::open(pod).unwrap()).unwrap();
        Self { kernel, node: Rtnl::node().unwrap(), link }
    }

    /// What ADD requests.
    pub(crate) fn create(&mut self) {
        self.kernel.create(Home::Target, NewLink::Macvtap(&self.link)).unwrap();
        self.set_up();
    }

    /// The same link, in the classic way.
    pub(crate) fn classic(&mut self, way: Way) {
        let temporary = Macvtap { name: "made0".parse().unwrap(), ..self.link.clone() };
        self.node.create(Home::Node, NewLink::Macvtap(&temporary)).unwrap();
        if way == Way::Up {
            self.node.change(temporary.index, Change::up(true)).unwrap();
        }
        self.kernel.move_in(temporary.index, &temporary.name, &"move it").unwrap();
        // The move has set it down, if it was up.
        let renamed = Change { name: Some(&self.link.name), ..Change::default() };
        self.kernel.change(temporary.index, renamed).unwrap();
        self.set_up();
    }

    /// The request that deletes it.
    pub(crate) fn delete(&mut self) {
        self.kernel.delete(Place::Home(Home::Target), self.link.index).unwrap();
    }

    fn set_up(&mut self) {
        let (index, name) = (self.link.index, self.link.name.as_str());
        self.kernel.no_autoconfiguration(index, name).unwrap();
        self.kernel.change(index, Change::up(true)).unwrap();
    }
}
