use rangedb_client::admin::{Health, Liveness};
use rangedb_client::{Client, Error};

async fn empty_node(client: &Client, node: u64) -> Result<(), Error> {
    let admin = client.admin();
    let status = admin.status().await?;
    for dead in status.nodes.iter().filter(|node| node.liveness == Liveness::Dead) {
        eprintln!("node {} at {} is dead", dead.id, dead.address);
    }
    if status.health != Health::Ok {
        return Ok(());
    }
    admin.config_set("balance", "off").await?;
    for range in admin.ranges().await? {
        if range.leader_node == Some(node) {
            admin.transfer_leader(range.id, None).await?;
        }
    }
    Ok(())
}
