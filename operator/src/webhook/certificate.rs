//! The certificate of the webhook: its own authority, so that there is no second key to keep.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};

use std::sync::Arc;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// What new connections are encrypted with.
pub type Tls = Arc<ServerConfig>;

/// How many days it is valid.
const VALID: i64 = 90;

/// After how many of them it is renewed.
const RENEWED: i64 = 60;

/// Clocks of nodes differ.
const BACKDATED: i64 = 1;

/// A certificate and its key, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// When it is renewed.
    pub renewal: Timestamp,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The library refused.
    #[error("make a certificate")]
    Make(#[from] rcgen::Error),
    /// The clock of this node is not to be believed.
    #[error("compute the end of a certificate")]
    Time(#[from] jiff::Error),
    /// It is not PEM.
    #[error("read a certificate and its key")]
    Read(#[from] pem::Error),
    /// Certificate and key do not fit, or are of a kind that is not known.
    #[error("use a certificate")]
    Use(#[from] rustls::Error),
}

/// Makes a certificate for these names of a server.
pub fn make(names: &[String], now: Timestamp) -> Result<Certificate, CertificateError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "macvtap-webhook");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let today = now.to_zoned(TimeZone::UTC);
    let day = |days: i64| -> Result<_, jiff::Error> {
        let date = today.checked_add(Span::new().try_days(days)?)?.date();
        let [month, day] = [date.month(), date.day()].map(i8::unsigned_abs);
        Ok(rcgen::date_time_ymd(date.year().into(), month, day))
    };
    params.not_before = day(-BACKDATED)?;
    params.not_after = day(VALID)?;
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    let renewal = today.checked_add(Span::new().try_days(RENEWED)?)?.timestamp();
    Ok(Certificate { certificate, key: key.serialize_pem(), renewal })
}

/// Prepares a certificate and its key for serving.
pub fn tls(certificate: &str, key: &str) -> Result<Tls, CertificateError> {
    let certificates = CertificateDer::pem_slice_iter(certificate.as_bytes());
    let certificates = certificates.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
    let mut config = config.with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_renewed_a_month_before_its_end() {
        let now: Timestamp = "2026-11-29T12:00:00Z".parse().unwrap();
        let made = make(&["macvtap-webhook.macvtap-system.svc".to_owned()], now).unwrap();
        assert_eq!(made.renewal.to_string(), "2027-01-28T12:00:00Z");
        let other = make(&["x".to_owned()], now).unwrap();
        assert!(tls(&made.certificate, &made.key).is_ok());
        assert!(tls(&made.certificate, &other.key).is_err());
        assert!(tls("nothing", &made.key).is_err());
    }
}
