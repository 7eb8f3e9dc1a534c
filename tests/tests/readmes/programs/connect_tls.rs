use rangedb_client::{Client, ClientOptions, Error, TlsOptions};

async fn connect() -> Result<Client, Error> {
    let tls = TlsOptions::ca_file(file("ca.pem")).certificate_files(file("client.pem"), file("client.key"));
    Client::connect(ClientOptions::new([tls_node()]).tls(tls)).await
}
