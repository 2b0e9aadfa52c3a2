//! What an agent makes of states that name configurations.

use super::*;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use kube::Config;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapNodeStateSpec};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

/// Nothing here takes this long.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the API server answers for each name: a code and the pools.
type Answers = Arc<Mutex<HashMap<String, (u16, Value)>>>;

async fn answer(State(answers): State<Answers>, Path(name): Path<String>) -> (StatusCode, String) {
    let found = answers.lock().unwrap().get(&name).cloned();
    let (code, pools) = found.unwrap_or((404, Value::Null));
    let object = json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapNodeConfig",
        "metadata": {"name": name}, "spec": {"pools": pools},
    });
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "no", "reason": ""});
    let body = if code == 200 { object } else { status };
    (StatusCode::from_u16(code).unwrap(), body.to_string())
}

/// An agent's reader, and what the API server answers it.
async fn scene() -> (Shared, Answers) {
    let answers = Answers::default();
    let path = "/apis/macvtap.network.kubevirt.io/v1alpha1/macvtapnodeconfigs/{name}";
    let router = Router::new().route(path, get(answer)).with_state(Arc::clone(&answers));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router).into_future());
    let client = Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
    (Shared::new(client), answers)
}

fn pools(name: &str) -> Value {
    json!([{"name": name, "uid": name, "generation": 1, "links": [{"names": ["dp0"]}]}])
}

fn state(hash: &str, config: Option<&str>) -> NodeStateObject {
    let mut state = MacvtapNodeState::new("n1", MacvtapNodeStateSpec::default());
    state.spec.config_hash = hash.to_owned();
    state.spec.config = config.map(str::to_owned);
    DeserializeGuard(Ok(state))
}

/// The hash and the pools of a state that was found.
fn served(found: Found) -> (String, Vec<String>) {
    let Found::State(Some(state)) = found else { panic!("{found:?}") };
    let DeserializeGuard(Ok(state)) = *state else { panic!("not readable") };
    let pools = state.spec.pools().iter().map(|pool| pool.name.clone()).collect();
    (state.spec.config_hash, pools)
}

async fn next(shared: &mut Shared) -> Found {
    tokio::time::timeout(DEADLINE, shared.read()).await.unwrap_or_else(|_| panic!("nothing in {DEADLINE:?}"))
}

#[tokio::test]
async fn a_configuration_is_read_once_for_all_states_that_name_it_and_the_last_state_counts() {
    let (mut shared, answers) = scene().await;
    let [first, second] = ["a", "b"].map(|name| name_of(&pools(name)));
    for (name, pool) in [(&first, "a"), (&second, "b")] {
        answers.lock().unwrap().insert(name.clone(), (200, pools(pool)));
    }
    assert!(matches!(shared.resolve(Some(state("h1", Some(&first)))), Found::Nothing));
    assert!(matches!(shared.resolve(Some(state("h2", Some(&second)))), Found::Nothing));
    assert!(matches!(shared.resolve(Some(state("h3", Some(&second)))), Found::Nothing));
    assert_eq!(served(next(&mut shared).await), ("h3".to_owned(), vec!["b".to_owned()]));
    answers.lock().unwrap().clear();
    assert_eq!(
        served(shared.resolve(Some(state("h4", Some(&second))))),
        ("h4".to_owned(), vec!["b".to_owned()])
    );

    assert!(matches!(shared.resolve(Some(state("h5", Some(&first)))), Found::Nothing));
    assert_eq!(served(shared.resolve(Some(state("h6", None)))), ("h6".to_owned(), vec![]));
    assert!(shared.read().now_or_never().is_none(), "the state that waited is not the last any more");
    let mut both = state("h7", Some(&first));
    both.0.as_mut().unwrap().spec.pools = Some(Vec::new());
    assert_eq!(served(shared.resolve(Some(both))), ("h7".to_owned(), vec![]));
}

#[tokio::test]
async fn what_keeps_an_agent_from_its_configuration_is_reported_until_it_can_read_it() {
    let (mut shared, answers) = scene().await;
    let name = name_of(&pools("a"));
    assert!(matches!(shared.resolve(Some(state("h1", Some(&name)))), Found::Nothing));
    let mut last = (404, Value::Null, "does not exist; the operator makes it again");
    for trouble in [
        last.clone(),
        (403, Value::Null, "allow it to get macvtapnodeconfigs"),
        (200, pools("b"), "is not what the operator wrote: delete it"),
        (200, json!({"strange": 7}), "is not what the operator wrote"),
    ] {
        last = trouble;
        let (code, content, text) = last.clone();
        answers.lock().unwrap().insert(name.clone(), (code, content));
        let Found::Problem(problem) = next(&mut shared).await else { panic!("{text}") };
        assert!(problem.contains(text) && problem.contains(&name), "{problem}");
    }
    answers.lock().unwrap().insert(name.clone(), (500, Value::Null));
    assert!(matches!(next(&mut shared).await, Found::Nothing), "that is not the configuration's fault");
    answers.lock().unwrap().insert(name, (200, pools("a")));
    assert_eq!(served(next(&mut shared).await).1, ["a"]);
}
