//! `relay DELAY_MS LISTEN=TARGET...`: delays what passes, see `net::relay`. Prints `ready` when it
//! listens everywhere.

use std::process::ExitCode;
use std::time::Duration;

use rangedb_tests::net::relay;
use tokio::net::TcpListener;

async fn run() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let delay = arguments.next().and_then(|text| text.parse().ok());
    let delay = Duration::from_millis(delay.ok_or("usage: relay DELAY_MS LISTEN=TARGET...")?);
    let mut serving = Vec::new();
    for route in arguments {
        let (listen, target) = route.split_once('=').ok_or("LISTEN=TARGET is missing")?;
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|error| format!("{listen}: {error}"))?;
        let serve = relay::serve(listener, target.to_owned(), delay);
        serving.push(tokio::spawn(serve));
    }
    println!("ready");
    for serve in serving {
        let ended = serve.await.map_err(|error| error.to_string())?;
        ended.map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = runtime
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(run()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("relay: {message}");
            ExitCode::FAILURE
        }
    }
}
