use std::time::Duration;
use rangedb_client::{Client, ClientOptions};

async fn connect(cluster: &str) -> Result<Client, Box<dyn std::error::Error>> {
    let options = ClientOptions::new([node(1), node(2), node(3)])
        .timeout(Duration::from_secs(2))
        .cluster(cluster.parse::<rangedb_client::ClusterId>()?);
    Ok(Client::connect(options).await?)
}
