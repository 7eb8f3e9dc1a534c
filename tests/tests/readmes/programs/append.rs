use rangedb_client::{CasOutcome, Client, Condition, Error};

async fn append(client: &Client, key: &str, line: &str) -> Result<u64, Error> {
    loop {
        let found = client.get(key).await?;
        let condition = found.as_ref().map_or(Condition::Absent, |found| Condition::Version(found.version));
        let mut text = found.map_or_else(Vec::new, |found| found.value.to_vec());
        text.extend_from_slice(line.as_bytes());
        if let CasOutcome::Swapped { version } = client.compare_and_swap(key, condition, text).await? {
            return Ok(version);
        }
    }
}
