//! Certificates, tokens and kubeconfig files: one authority per cluster, a certificate for the API server, one for its
//! calls to the kubelets, a key for service account tokens, and a random token for everyone else.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::json;

use crate::layout::{self, API_ADDRESS, API_SERVICE};

/// A user of the API: name, groups. The name is also the file that holds its token.
type User<'a> = (&'a str, &'a str);

/// The secrets of one cluster, in one directory.
#[derive(Clone, Debug)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Makes what is not there yet.
    pub fn ensure(dir: &Path, users: &[User<'_>]) -> Result<Self> {
        let pki = Self { dir: dir.to_path_buf() };
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        // Written last, so that an interrupted run is recreated instead of mixing two authorities.
        let complete = dir.join("tokens.csv");
        if !complete.exists() {
            pki.make_certificates()?;
            pki.make_tokens(users, &complete)?;
        }
        Ok(pki)
    }

    /// A file of this directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The token of `user`.
    pub fn token(&self, user: &str) -> Result<String> {
        let path = self.token_file(user);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Writes the kubeconfig of `user` for the API at `server`.
    pub fn kubeconfig(&self, path: &Path, user: &str, server: &str) -> Result<()> {
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1", "kind": "Config",
            "clusters": [{"name": "local", "cluster": {"server": server, "certificate-authority": self.file("ca.crt")}}],
            "users": [{"name": user, "user": {"token": self.token(user)?}}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": user}}],
            "current-context": "local",
        });
        secret(path, &format!("{config:#}\n"))
    }

    fn token_file(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{}.token", user.replace(':', "-")))
    }

    fn make_tokens(&self, users: &[User<'_>], complete: &Path) -> Result<()> {
        let mut lines = Vec::new();
        for (index, (user, groups)) in users.iter().enumerate() {
            let token = random_token()?;
            secret(&self.token_file(user), &token)?;
            lines.push(format!("{token},{user},{index},\"{groups}\"\n"));
        }
        secret(complete, &lines.concat())
    }

    fn make_certificates(&self) -> Result<()> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.distinguished_name = name("macvtap-cluster", None);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        secret(&self.file("ca.key"), &key.serialize_pem())?;
        let authority = CertifiedIssuer::self_signed(authority, key).context("make the authority")?;
        layout::write(&self.file("ca.crt"), authority.pem())?;

        let names = ["127.0.0.1", API_ADDRESS, API_SERVICE, "localhost", "kubernetes", "kubernetes.default"];
        let names = names.map(str::to_owned).into_iter().chain(["kubernetes.default.svc".to_owned()]);
        let server = CertificateParams::new(names.collect::<Vec<_>>())?;
        self.sign("apiserver", server, name("kube-apiserver", None), &authority)?;
        let client = name("apiserver-kubelet-client", Some("system:masters"));
        self.sign("kubelet-client", CertificateParams::new(Vec::new())?, client, &authority)?;
        let accounts = KeyPair::generate()?;
        secret(&self.file("service-accounts.key"), &accounts.serialize_pem())?;
        layout::write(&self.file("service-accounts.pub"), accounts.public_key_pem())
    }

    fn sign(
        &self,
        file: &str,
        mut params: CertificateParams,
        subject: DistinguishedName,
        authority: &CertifiedIssuer<'_, KeyPair>,
    ) -> Result<()> {
        params.distinguished_name = subject;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, authority).with_context(|| format!("sign {file}"))?;
        secret(&self.file(&format!("{file}.key")), &key.serialize_pem())?;
        layout::write(&self.file(&format!("{file}.crt")), certificate.pem())
    }
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

/// 128 bits from the kernel, in hex.
fn random_token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .context("get random bytes")?;
    Ok(layout::hex(&bytes))
}

/// Writes a file only its owner can read.
fn secret(path: &Path, content: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let file = fs::File::options().create_new(true).write(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(content.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn secrets_are_made_once_and_only_their_owner_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let users = [("admin", "system:masters"), ("system:node:n1", "system:nodes")];
        let pki = Pki::ensure(dir.path(), &users).unwrap();
        let token = pki.token("system:node:n1").unwrap();
        assert_ne!(token, pki.token("admin").unwrap());
        assert_eq!(Pki::ensure(dir.path(), &users).unwrap().token("system:node:n1").unwrap(), token);
        for file in ["ca.key", "apiserver.key", "service-accounts.key", "tokens.csv", "admin.token"] {
            assert_eq!(fs::metadata(pki.file(file)).unwrap().permissions().mode() & 0o077, 0, "{file}");
        }
    }
}
