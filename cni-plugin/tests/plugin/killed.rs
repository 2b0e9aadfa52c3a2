//! Calls of many pods at once, a third of them killed at a random moment, as a runtime kills what takes too long.

use crate::support::{Call, Holder, Node, bare_node_and_pods, has_plugins, link, state, wait_until};
use macvtap::kernel::Rtnl;
use macvtap::park;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How many calls run at a time.
const AT_ONCE: usize = 16;

/// Pairs of ADD and DEL when nothing else is asked for: seconds. `MACVTAP_KILLED_PAIRS=10000` takes minutes.
const PAIRS: usize = 320;

/// A fixed sequence, so that a failure can be repeated (`MACVTAP_KILLED_SEED`).
struct Random(u64);

impl Random {
    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64 (Marsaglia).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn asked<T: std::str::FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs a call, and kills it in one of three cases, within the time that the last whole call took. Returns whether it
/// came to its end.
fn perhaps_killed(call: &Call<'_>, command: &str, random: &mut Random, usual: &mut Duration) -> bool {
    let begun = Instant::now();
    let mut running = call.start(command);
    if random.below(3) == 0 {
        let usual = u64::try_from(usual.as_micros()).unwrap().max(1);
        // Not to wait for something, but to hit another moment each time.
        std::thread::sleep(Duration::from_micros(random.below(usual)));
        running.kill().unwrap();
        return running.wait_with_output().unwrap().status.success();
    }
    let output = running.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    *usual = begun.elapsed();
    true
}

/// The pairs of one pod. Returns how many calls were killed.
fn pairs(node: &Node, pod: &Holder, slot: usize, count: usize, seed: u64) -> usize {
    let mut random = Random(seed ^ (u64::try_from(slot).unwrap() + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let ipam =
        json!({"type": "host-local", "dataDir": "/run/leases", "ranges": [[{"subnet": "10.9.0.0/24"}]]});
    let (mut killed, mut usual) = (0, Duration::from_millis(20));
    for pair in 0..count {
        let call = Call::new(node, pod, &format!("c{slot}-{pair}"));
        let call = call.device(u32::try_from(slot).unwrap()).with(json!({"ipam": ipam}));
        killed += usize::from(!perhaps_killed(&call, "ADD", &mut random, &mut usual));
        while !perhaps_killed(&call, "DEL", &mut random, &mut usual) {
            killed += 1;
        }
        assert_eq!(link(pod), Value::Null, "slot {slot}, pair {pair}");
    }
    killed
}

/// Processes of the plugin and of its IPAM plugin that run in the node's mount namespace.
fn processes(node: &Node) -> String {
    node.sh(
        "own=$(readlink /proc/self/ns/mnt); for process in /proc/[0-9]*; do \
         [ \"$(readlink $process/ns/mnt 2>/dev/null)\" = \"$own\" ] || continue; \
         case $(cat $process/comm 2>/dev/null) in macvtap|exe|host-local) echo $process $(cat $process/comm);; esac; done",
    )
}

#[test]
fn pairs_of_calls_killed_at_random_leave_nothing() {
    let Some((node, pods)) = has_plugins().then(bare_node_and_pods::<AT_ONCE>).flatten() else { return };
    node.store_table(|table| {
        let resource = table.resources.values_mut().next().unwrap();
        resource.links_mut()[0].ranges[0].count = u32::try_from(AT_ONCE).unwrap();
    });
    let count = asked("MACVTAP_KILLED_PAIRS").unwrap_or(PAIRS).div_ceil(AT_ONCE);
    let seed = asked("MACVTAP_KILLED_SEED").unwrap_or(0x6d61_6376_7461_7031);
    // Directories and locks stay.
    let first = Call::new(&node, &pods[0], "first");
    first.ok("ADD");
    first.ok("DEL");
    let before: Vec<_> = pods.iter().map(|pod| state(&node, pod)).collect();
    let (node, begun) = (&node, Instant::now());
    let killed: usize = std::thread::scope(|scope| {
        let running: Vec<_> = (0..)
            .zip(&pods)
            .map(|(slot, pod)| scope.spawn(move || pairs(node, pod, slot, count, seed)))
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    println!("{} pairs, {killed} calls killed, {:?}", count * AT_ONCE, begun.elapsed());
    assert!(killed > count, "only {killed} calls were killed");
    wait_until("the end of every process", || processes(node).is_empty());
    node.inside(|| park::release(&node.paths(), &mut Rtnl::node().unwrap()).unwrap());
    let after: Vec<_> = pods.iter().map(|pod| state(node, pod)).collect();
    assert_eq!(after, before);
    assert_eq!(node.sh("cd /run/leases/dataplane; grep -H . 10.* 2>/dev/null || true"), "", "leases left");
    assert_eq!(node.sh("find /run/macvtap /var/lib/macvtap -name '*.tmp*' -o -name '.*' -type f"), "");
}
