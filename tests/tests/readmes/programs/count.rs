use rangedb_client::{Client, Error};

async fn count(client: &Client) -> Result<(), Error> {
    loop {
        match client.increment("orders", 1).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_retryable() => eprintln!("{error}; trying again"),
            // It may have been counted: another increment could count twice.
            Err(error) => return Err(error),
        }
    }
}
