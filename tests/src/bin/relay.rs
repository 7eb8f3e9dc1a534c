//! `relay DELAY_MS DAMAGE_ONE_IN LISTEN=TARGET...`: runs the relay of `net::relay`. Prints `ready`
//! when it listens on all addresses.

use std::process::ExitCode;
use std::time::Duration;

use rangedb_tests::net::relay::{self, Passage};
use tokio::net::TcpListener;

async fn run() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().and_then(|text| text.parse::<u32>().ok());
    let (Some(delay_ms), Some(damage_one_in)) = (number(), number()) else {
        return Err("usage: relay DELAY_MS DAMAGE_ONE_IN LISTEN=TARGET...".to_owned());
    };
    let passage = Passage {
        delay: Duration::from_millis(delay_ms.into()),
        damage_one_in,
    };
    let mut serving = Vec::new();
    for route in arguments {
        let (listen, target) = route.split_once('=').ok_or("LISTEN=TARGET is missing")?;
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|error| format!("{listen}: {error}"))?;
        let serve = relay::serve(listener, target.to_owned(), passage);
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
