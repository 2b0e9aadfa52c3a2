//! A resource, and kubelets that are away, refuse it, or take it.

use super::*;
use crate::devices::nics::NicNames;
use crate::kubelet::directory;
use crate::pods::PodAges;
use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchMask};
use macvtap::paths::Paths;
use macvtap::table::DeviceType;
use macvtap_crds::v1alpha1::settings::Allocation;
use macvtap_proto::deviceplugin::Empty;
use macvtap_proto::deviceplugin::device_plugin_client::DevicePluginClient;
use macvtap_proto::deviceplugin::registration_server::{Registration as Registrar, RegistrationServer};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

/// Nothing here takes this long.
const DEADLINE: Duration = Duration::from_secs(20);

/// What a resource has waited for at least, after this many tries in a row.
const TRIES: usize = 11;
const WAITED: Duration = Duration::from_millis(2 + 4 + 8 + 16 + 32 + 64 + 128 + 256 + 512 + 1000);

/// A kubelet's directory, and what happens in it.
struct Scene {
    directory: TempDir,
    happened: watch::Receiver<Happened>,
    stop: CancellationToken,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (sender, happened) = watch::channel(Happened::default());
        tokio::spawn(directory::watch(directory.path().to_owned(), sender));
        Self { directory, happened, stop: CancellationToken::new() }
    }

    /// Keeps a resource registered; gives the ends by which it is told and asked.
    fn run(&self, name: &str) -> (watch::Sender<Arc<Offer>>, watch::Receiver<Registration>) {
        let path = self.directory.path();
        let (offer, offered) = watch::channel(Arc::new(offer(name, "example.com")));
        let (registered, registration) = watch::channel(Registration::default());
        let shared = Shared::new(
            Paths::new(path, path),
            path.join("none"),
            path.to_owned(),
            PodAges::default(),
            NicNames::default(),
        );
        let resource = ResourceServer {
            name: name.parse().unwrap(),
            directory: path.to_owned(),
            offer: offered,
            happened: self.happened.clone(),
            shared: Arc::new(shared),
            stop: self.stop.clone(),
            hand_over: CancellationToken::new(),
            registered,
        };
        tokio::spawn(resource.run());
        (offer, registration)
    }

    /// A kubelet; gives the names under which resources are registered.
    fn kubelet(&self, takes: bool) -> mpsc::UnboundedReceiver<String> {
        let directory = self.directory.path().to_owned();
        let listener = UnixListener::bind(directory.join(KUBELET_SOCKET)).unwrap();
        let (asked, names) = mpsc::unbounded_channel();
        let server =
            Server::builder().add_service(RegistrationServer::new(TestKubelet { directory, takes, asked }));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        names
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn offer(name: &str, prefix: &str) -> Offer {
    Offer {
        resource: name.parse().unwrap(),
        full_name: format!("{prefix}/{name}"),
        tap_only: TapOnly::Forbidden,
        device_type: DeviceType::Macvtap,
        allocation: Allocation::default(),
        runs: Vec::new(),
    }
}

/// Answers every registration alike, and reads the list of a resource that it takes.
struct TestKubelet {
    directory: PathBuf,
    takes: bool,
    asked: mpsc::UnboundedSender<String>,
}

#[tonic::async_trait]
impl Registrar for TestKubelet {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        self.asked.send(request.resource_name).unwrap();
        if !self.takes {
            return Err(Status::unavailable("not today"));
        }
        let socket = self.directory.join(request.endpoint);
        tokio::spawn(async move {
            let endpoint = Endpoint::try_from(format!("unix:{}", socket.display())).unwrap();
            let mut client = DevicePluginClient::new(endpoint.connect().await.unwrap());
            let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
            while let Ok(Some(_)) = lists.message().await {}
        });
        Ok(Response::new(Empty {}))
    }
}

async fn soon<T>(what: &str, awaited: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, awaited).await.unwrap_or_else(|_| panic!("not in {DEADLINE:?}: {what}"))
}

#[tokio::test]
async fn without_a_kubelet_tries_become_rare_whatever_else_happens_in_its_directory() {
    let scene = Scene::new();
    let path = scene.directory.path();
    let inotify = Inotify::init().unwrap();
    inotify.watches().add(path, WatchMask::CREATE).unwrap();
    let mut events = inotify.into_event_stream([0; 4096]).unwrap();
    let begun = Instant::now();
    let mut told = [scene.run("a").1, scene.run("b").1];
    for made in 0..2 * TRIES {
        // Another's file does not count, and no more does its end.
        let file = path.join(format!("checkpoint{made}"));
        std::fs::write(&file, "").unwrap();
        std::fs::rename(&file, path.join("checkpoint")).unwrap();
        soon("another socket", async {
            loop {
                let event = events.next().await.unwrap().unwrap();
                assert!(!event.mask.contains(EventMask::Q_OVERFLOW));
                if event.name.is_some_and(|name| name.to_string_lossy().starts_with(socket::PREFIX)) {
                    break;
                }
            }
        })
        .await;
        if made == 5 {
            for told in &mut told {
                assert!(matches!(*told.borrow_and_update(), Registration::Unreachable(_)));
            }
        }
    }
    assert!(begun.elapsed() >= WAITED, "{TRIES} tries within {:?}", begun.elapsed());
    assert!(told.iter().all(|told| !told.has_changed().unwrap()), "the same is told again");
}

#[tokio::test]
async fn a_kubelet_that_refuses_a_resource_is_asked_less_and_less_often() {
    let scene = Scene::new();
    let mut asked = scene.kubelet(false);
    let begun = Instant::now();
    let _ends = scene.run("a");
    for _ in 0..TRIES {
        soon("another registration", asked.recv()).await.unwrap();
    }
    assert!(begun.elapsed() >= WAITED, "{TRIES} registrations within {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_resource_of_another_prefix_is_registered_under_its_new_name() {
    let scene = Scene::new();
    let mut asked = scene.kubelet(true);
    let (offered, mut registered) = scene.run("a");
    assert_eq!(soon("a registration", asked.recv()).await.unwrap(), "example.com/a");
    soon("its list is read", registered.wait_for(|told| *told == Registration::Done)).await.unwrap();
    offered.send_replace(Arc::new(offer("a", "example.org")));
    assert_eq!(soon("another registration", asked.recv()).await.unwrap(), "example.org/a");
}
