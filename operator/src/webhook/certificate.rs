//! The certificate of the webhook: its own authority, so that there is no second key to keep.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};

use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier as _;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime,
};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

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

/// Why no server of a name can have a certificate of a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is not PEM.
    #[error("it is not PEM")]
    Read(#[from] pem::Error),
    /// It contains no certificate.
    #[error("it contains no certificate")]
    Empty,
    /// The name is not a DNS name.
    #[error("the server's name is not a DNS name")]
    Name(#[from] InvalidDnsNameError),
    /// Its certificates are expired, or those of another server.
    #[error(transparent)]
    Invalid(#[from] rustls::Error),
    /// The verifier cannot be made.
    #[error(transparent)]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// Checks that one certificate of a bundle, which is its own authority, is valid at a time for a server of this name.
pub fn check_bundle(bundle: &[u8], server: &str, now: Timestamp) -> Result<(), BundleError> {
    let server = ServerName::try_from(server)?;
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let mut outcome = Err(BundleError::Empty);
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        outcome = check_own_authority(&certificate?, &server, now);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn check_own_authority(
    certificate: &CertificateDer<'_>,
    server: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), BundleError> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone().into_owned())?;
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
    verifier.verify_server_cert(certificate, &[], server, &[], now)?;
    Ok(())
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

    #[test]
    fn a_bundle_is_valid_for_its_server_until_its_last_certificate_expires() {
        let server = "macvtap-webhook.macvtap-system.svc";
        let time = |text: &str| -> Timestamp { text.parse().unwrap() };
        let made = |name: &str, now: &str| make(&[name.to_owned()], time(now)).unwrap().certificate;
        let (old, new) = (made(server, "2026-01-01T00:00:00Z"), made(server, "2026-03-02T00:00:00Z"));
        let check = |bundle: &str, now: &str| check_bundle(bundle.as_bytes(), server, time(now));
        check(&old, "2026-03-31T00:00:00Z").unwrap();
        let expired = check(&old, "2026-04-02T00:00:00Z").unwrap_err();
        assert!(expired.to_string().contains("expired"), "{expired}");
        check(&(new.clone() + &old), "2026-04-02T00:00:00Z").unwrap();
        check(&(old + &new), "2026-04-02T00:00:00Z").unwrap();
        let foreign = check(&made("other.svc", "2026-01-01T00:00:00Z"), "2026-01-02T00:00:00Z").unwrap_err();
        assert!(foreign.to_string().contains("not valid for name"), "{foreign}");
        assert!(matches!(check("", "2026-01-02T00:00:00Z"), Err(BundleError::Empty)));
        assert!(check("-----BEGIN CERTIFICATE-----\n", "2026-01-02T00:00:00Z").is_err());
    }
}
