//! Certificates and keys for tests of TLS, made anew in each, as files in a temporary folder.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

/// The hosts of a node on this machine.
pub const HOSTS: &[&str] = &["localhost", "127.0.0.1"];

/// A CA whose certificate, and those that it signs, are files of a folder that goes with it.
pub struct Ca {
    folder: tempfile::TempDir,
    name: String,
    issuer: Issuer<'static, KeyPair>,
}

/// The files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The path of the certificate.
    pub certificate: String,
    /// The path of its key.
    pub key: String,
}

fn named(hosts: &[&str], name: String) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("good names");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Ca {
    /// A new CA of this name.
    ///
    /// # Panics
    /// Its file cannot be written.
    pub fn new(name: &str) -> Ca {
        let mut params = named(&[], name.to_owned());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let ca = Ca {
            folder: tempfile::tempdir().expect("a folder"),
            name: name.to_owned(),
            issuer: Issuer::new(params, key),
        };
        std::fs::write(ca.file(), certificate.pem()).expect("written");
        ca
    }

    /// The path of its certificate.
    pub fn file(&self) -> String {
        self.path("ca.pem")
    }

    /// The path of a file in its folder.
    ///
    /// # Panics
    /// The system's folder for temporary files is not UTF-8.
    pub fn path(&self, file: &str) -> String {
        let path = self.folder.path().join(file);
        path.to_str().expect("UTF-8").to_owned()
    }

    /// Signs a certificate for these hosts.
    pub fn sign(&self, name: &str, hosts: &[&str]) -> Signed {
        self.sign_until(name, hosts, 4096)
    }

    /// Signs a certificate that expires when this year begins.
    ///
    /// # Panics
    /// A file cannot be written.
    pub fn sign_until(&self, name: &str, hosts: &[&str], year: i32) -> Signed {
        let mut params = named(hosts, format!("{name} of {}", self.name));
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let signed = Signed {
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
        };
        std::fs::write(&signed.certificate, certificate.pem()).expect("written");
        std::fs::write(&signed.key, key.serialize_pem()).expect("written");
        signed
    }
}
