//! An agent that does not start says why.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_on_one_data_directory_are_one_too_many() {
    let mut scene = Scene::new(&Script::new(1, 1)).await;
    let _talk = scene.start().await;
    let error = Agent::start(scene.config.clone()).await.unwrap_err();
    assert!(matches!(error, AgentError::Busy(_)), "{error}");
    assert_eq!(error.blame(), Blame::Person);
    scene.shutdown().await;
}

#[tokio::test]
async fn an_agent_that_never_joined_says_how_to() {
    let folder = tempfile::tempdir().unwrap();
    let error = Agent::start(Config { data_dir: folder.path().into(), ..Config::default() }).await.unwrap_err();
    assert!(error.to_string().contains("has not joined"), "{error}");
    assert!(error.hint().unwrap().contains("lorikeet agent join"));
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_named() {
    let coordinator = Coordinator::start();
    let config = Config { data_dir: "/proc/nowhere".into(), ..Config::default() };
    let error = Agent::join(&coordinator.join_string(), &config).await.unwrap_err();
    assert!(error.to_string().contains("/proc/nowhere"), "{error}");
    assert_eq!(error.blame(), Blame::Machine);
    assert!(coordinator.joins.lock().unwrap().is_empty(), "a secret was spent on a machine that cannot keep its key");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_for_giving_that_is_taken_keeps_no_agent_from_its_work() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut scene = Scene::new(&Script::new(1, 1)).await;
    scene.config.share.listen = Some(taken.local_addr().unwrap());
    let _talk = scene.start().await;
    scene.shutdown().await;
}

#[tokio::test]
async fn a_worker_that_cannot_be_started_is_named_before_anything_is_offered() {
    let mut scene = Scene::new(&Script::new(1, 1)).await;
    scene.config.worker.command = vec!["/nowhere/train".into()];
    let error = Agent::start(scene.config.clone()).await.unwrap_err();
    assert!(error.to_string().contains("worker.command") && error.to_string().contains("/nowhere/train"), "{error}");
    assert_eq!(error.blame(), Blame::Person);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_neither_gives_files_nor_takes_them_runs_on() {
    let mut scene = Scene::new(&Script::new(3, 1)).await;
    scene.config.share.fetch = false;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    let agent = scene.agent.as_mut().unwrap();
    let outcome = tokio::select! {
        biased;
        ended = agent.wait() => panic!("nobody told it to end: {ended:?}"),
        ended = talk.until_ended() => ended.outcome,
    };
    assert_eq!(outcome, Outcome::Ok);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_ends_untold_ends_the_agent_as_a_failure() {
    let mut scene = Scene::new(&Script::new(1, 1)).await;
    let _talk = scene.start().await;
    let agent = scene.agent.as_mut().unwrap();
    agent.tasks.spawn(async { Part::Scrub });
    let error = within(agent.wait()).await.unwrap_err();
    assert!(error.to_string().contains("the reading of its cache ended"), "{error}");
    agent.tasks.spawn(async { panic!("it died") });
    assert!(matches!(within(agent.wait()).await, Err(AgentError::Task(_))));
    scene.shutdown().await;

    // Others find at once that it has gone.
    scene.config.devices.probe = Duration::from_millis(1);
    let _talk = scene.start().await;
    let agent = scene.agent.as_mut().unwrap();
    agent.driver.cancel();
    let error = within(agent.wait()).await.unwrap_err();
    assert!(error.to_string().contains("its driver ended, and nobody had told it to"), "{error}");
    assert_eq!(error.blame(), Blame::Bug);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sharing_ends_when_its_socket_does() {
    let scene = Scene::new(&Script::new(1, 1)).await;
    let (caller, (_up, state)) = (caller(&scene), watch::channel(LinkState::Down { why: None }));
    let cache = Cache::open(&scene.places().cache(), &scene.config.cache).unwrap();
    let share = config::Share { listen: Some("127.0.0.1:0".parse().unwrap()), ..scene.config.share.clone() };
    let blobs = Blobs::new(caller.clone(), state.clone());
    let sharing = Sharing::bind(&share, &caller, blobs, cache, state).unwrap();
    sharing.giving.as_ref().unwrap().endpoint().close(0u32.into(), b"");
    within(sharing.run(CancellationToken::new())).await;
}

fn caller(scene: &Scene) -> Caller {
    let identity = Identity::load(&scene.places().identity()).unwrap();
    Caller::new(identity, None, Timers::new(&scene.config.link)).unwrap()
}
