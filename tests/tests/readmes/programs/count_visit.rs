use rangedb_client::blocking::Client;

fn count_visit() -> Result<i64, rangedb_client::Error> {
    let client = Client::connect(node(1))?;
    Ok(client.increment("visits", 1)?.value)
}
