use rangedb_client::{Client, Error};

async fn last_events(client: &Client) -> Result<(), Error> {
    let mut scan = client.scan_prefix("event/").reverse().keys_only().limit(10);
    while let Some(row) = scan.next().await {
        let row = row?;
        println!("{:?}, version {}", row.key, row.version);
    }
    println!("{} users", client.scan_prefix("user/").count().await?);
    Ok(())
}
