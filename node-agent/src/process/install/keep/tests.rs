use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

/// A node with a CNI directory, in which somebody else's plugin is.
struct Scene {
    dir: tempfile::TempDir,
    keeper: Keeper,
}

impl Scene {
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("plugin"), "ours").unwrap();
        fs::create_dir_all(path("node/opt/cni")).unwrap();
        prepare(&path("node/opt/cni"));
        let plugin = Plugin {
            file: path("plugin"),
            names: PluginName::wanted(false),
            directory: "/opt/cni/bin".into(),
            node_root: Some(path("node")),
        };
        let keeper = Keeper::new(plugin, None);
        let scene = Self { dir, keeper };
        assert_eq!(scene.keeper.plugin.look(&scene.keeper.start, true), Presence::default());
        scene
    }

    fn plain() -> Self {
        Self::new(|cni| directory(&cni.join("bin")))
    }

    fn cni(&self) -> PathBuf {
        self.dir.path().join("node/opt/cni")
    }

    fn plugin(&self) -> PathBuf {
        self.cni().join("bin/macvtap")
    }

    fn look(&self) -> Presence {
        self.keeper.plugin.look(&self.keeper.start, false)
    }

    /// After one look everything is as it should be.
    fn heals(&self) {
        assert_eq!(self.look(), Presence::default());
        assert!(serves(&self.plugin(), env!("CARGO_PKG_VERSION")));
    }
}

fn directory(path: &Path) {
    fs::create_dir(path).unwrap();
    let other = path.join("bridge");
    fs::write(&other, "another").unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_plugin_that_was_removed_damaged_or_replaced_is_back_after_a_look() {
    let scene = Scene::plain();
    fs::remove_file(scene.plugin()).unwrap();
    scene.heals();
    fs::write(scene.plugin(), "").unwrap();
    scene.heals();
    fs::write(scene.plugin(), "foreign").unwrap();
    scene.heals();
    fs::set_permissions(scene.plugin(), fs::Permissions::from_mode(0o600)).unwrap();
    scene.heals();
    fs::remove_file(scene.plugin()).unwrap();
    fs::write(scene.plugin(), "older\nmacvtap-cni 0.0.1\n").unwrap();
    scene.heals();
}

#[test]
fn another_build_of_this_version_or_a_newer_one_is_left_alone() {
    let scene = Scene::plain();
    for version in [env!("CARGO_PKG_VERSION"), "99.0.0"] {
        let other = format!("another agent's\nmacvtap-cni {version}\n");
        fs::write(scene.plugin(), &other).unwrap();
        assert_eq!(scene.look(), Presence::default());
        assert_eq!(fs::read_to_string(scene.plugin()).unwrap(), other);
    }
}

#[test]
fn a_directory_that_was_exchanged_gets_the_plugin() {
    let scene = Scene::plain();
    let (bin, old) = (scene.cni().join("bin"), scene.cni().join("old"));
    fs::rename(&bin, &old).unwrap();
    directory(&bin);
    scene.heals();
    fs::remove_dir_all(&bin).unwrap();
    let Presence { missing: None, doubt: Some(_) } = scene.look() else {
        panic!("it is made, and ours alone")
    };
    // A link that leads elsewhere, in the words of the node.
    fs::remove_dir_all(&bin).unwrap();
    directory(&scene.cni().join("v2"));
    symlink("/opt/cni/v2", &bin).unwrap();
    assert_eq!(scene.look(), Presence::default());
    assert!(serves(&scene.cni().join("v2/macvtap"), env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_directory_that_was_exchanged_for_one_out_of_sight_is_said() {
    let scene = Scene::new(|cni| {
        directory(&cni.join("v1"));
        symlink("v1", cni.join("bin")).unwrap();
    });
    fs::remove_file(scene.cni().join("bin")).unwrap();
    symlink("/var/lib/cni/v2", scene.cni().join("bin")).unwrap();
    let missing = scene.look().missing.unwrap();
    assert!(missing.contains("/opt/cni/bin") && missing.contains("exchanged"), "{missing}");
}

#[test]
fn a_directory_of_nobody_else_is_named_until_somebody_comes() {
    let scene = Scene::plain();
    fs::remove_file(scene.cni().join("bin/bridge")).unwrap();
    fs::write(scene.cni().join("bin/README"), "no program").unwrap();
    let doubt = scene.look().doubt.unwrap();
    assert!(doubt.contains("/opt/cni/bin") && doubt.contains("cniBinDir"), "{doubt}");
    fs::write(scene.cni().join("bin/loopback"), "another").unwrap();
    fs::set_permissions(scene.cni().join("bin/loopback"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(scene.look(), Presence::default());
}

#[test]
fn a_directory_or_pipe_in_place_of_the_plugin_is_replaced() {
    let scene = Scene::plain();
    let (pipe, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o755));
    for pipe in [None, Some(pipe)] {
        fs::remove_file(scene.plugin()).unwrap();
        match pipe {
            Some(pipe) => rustix::fs::mknodat(rustix::fs::CWD, scene.plugin(), pipe, mode, 0).unwrap(),
            None => fs::create_dir(scene.plugin()).unwrap(),
        }
        scene.heals();
    }
}

#[test]
fn a_place_that_cannot_be_written_is_named_with_the_reason() {
    let scene = Scene::plain();
    fs::remove_file(scene.plugin()).unwrap();
    fs::create_dir_all(scene.plugin().join("x")).unwrap();
    let missing = scene.look().missing.unwrap();
    assert!(missing.contains("/opt/cni/bin/macvtap"), "{missing}");
}

#[test]
fn what_is_mounted_tells_a_directory_that_was_renamed_or_deleted() {
    let line = |root: &str| format!("36 35 98:0 {root} /host/opt/cni rw,noatime - ext4 /dev/vda rw\n");
    let at = Path::new("/host/opt/cni");
    assert_eq!(mounted(&line("/opt/cni"), at).as_deref(), Some("/opt/cni"));
    assert_eq!(mounted(&line("/opt/cni//deleted"), at).as_deref(), Some("/opt/cni//deleted"));
    assert_eq!(mounted(&line("/opt/cni"), Path::new("/opt/cni")), None);
}

#[test]
fn a_worker_that_starts_again_knows_the_way_of_the_first_one() {
    let scene = Scene::plain();
    let (memory, bin) = (scene.dir.path().join("memory"), scene.cni().join("bin"));
    fs::write(&memory, "").unwrap();
    let worker = || Keeper::new(scene.keeper.plugin.clone(), Some(&memory));
    let first = worker();
    assert_eq!(first.start, scene.keeper.start);
    fs::rename(&bin, scene.cni().join("old")).unwrap();
    symlink("old", &bin).unwrap();
    assert_ne!(scene.keeper.plugin.way(), first.start, "the directory was exchanged");
    assert_eq!(worker().start, first.start);
}
