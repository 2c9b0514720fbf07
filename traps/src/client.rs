//! The client: real HTTP, from a thread and a runtime that are not watched.

use crate::failure::Failure;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// The answer to a request that is not coming, so that a mistake here does not hang the program.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often each route of the light traffic is called.
const TRAFFIC_INTERVAL: Duration = Duration::from_millis(20);

/// Clients that call without a pause, and for how long, when the server is to be saturated.
const CROWD: usize = 8;
const RUSH_HOUR: Duration = Duration::from_secs(1);

/// How long the rush has been under way when the one request goes out that matters.
const HEADWAY: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: SocketAddr,
}

impl Client {
    pub(crate) fn new(server: SocketAddr) -> Result<Client, Failure> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .build()?;
        Ok(Client { http, server })
    }

    /// Asks, and reads the answer to its end.
    pub(crate) async fn get(&self, path: &str) -> Result<(), Failure> {
        let url = format!("http://{}{path}", self.server);
        let mut response = self.http.get(url).send().await?;
        if !response.status().is_success() {
            let why = response.text().await?;
            return Err(Failure::new(format!("{path} failed: {why}")));
        }
        while response.chunk().await?.is_some() {}
        Ok(())
    }

    /// Calls ordinary routes now and then, for as long as the current runtime lasts.
    pub(crate) fn start_traffic(&self) {
        for path in ["/ping", "/users/7"] {
            tokio::spawn(self.clone().traffic(path));
        }
    }

    async fn traffic(self, path: &'static str) {
        let mut pace = interval(TRAFFIC_INTERVAL);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            if let Err(failure) = self.get(path).await {
                eprintln!("traps: no more traffic: {failure}");
                return;
            }
        }
    }

    /// Keeps the server as busy as it gets.
    pub(crate) async fn saturate(&self) -> Result<(), Failure> {
        end(self.start_rush()).await
    }

    /// Asks once, while the server is as busy as it gets.
    pub(crate) async fn get_in_a_rush(&self, path: &str) -> Result<(), Failure> {
        let crowd = self.start_rush();
        sleep(HEADWAY).await;
        self.get(path).await?;
        end(crowd).await
    }

    fn start_rush(&self) -> JoinSet<Result<(), Failure>> {
        let until = Instant::now() + RUSH_HOUR;
        let mut crowd = JoinSet::new();
        for _ in 0..CROWD {
            let client = self.clone();
            crowd.spawn(async move {
                while Instant::now() < until {
                    client.get("/ping").await?;
                }
                Ok::<_, Failure>(())
            });
        }
        crowd
    }
}

/// Waits until everybody has gone home.
async fn end(mut crowd: JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(member) = crowd.join_next().await {
        member??;
    }
    Ok(())
}
