use rangedb_client::{Batch, BatchOutcome, CasOutcome, Client, Condition};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), rangedb_client::Error> {
    let client = Client::connect([node(1), node(2), node(3)]).await?;
    client.put("greeting", "hello").await?;
    if let Some(found) = client.get("greeting").await? {
        let swap = client.compare_and_swap("greeting", Condition::Version(found.version), "hi");
        assert!(matches!(swap.await?, CasOutcome::Swapped { .. }));
    }
    let batch = Batch::new()
        .if_absent("greeting/lock")
        .put("greeting/lock", "me")
        .add("greeting/count", 1);
    match client.batch(&batch).await? {
        BatchOutcome::Written { version, numbers } => println!("{version}: {numbers:?}"),
        BatchOutcome::Failed { condition, current } => println!("{condition} failed: {current:?}"),
        _ => {}
    }
    Ok(())
}
