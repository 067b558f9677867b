import Commands
import Configuration
import Foundation
import Glibc
import XCTest
@testable import Commands

/// `install` and `uninstall` as a user types them, on a system below a folder.
final class InstallTests: XCTestCase {
    private var folder: TemporaryFolder!
    private var root: String { folder.path }

    override func setUpWithError() throws { folder = try TemporaryFolder() }
    override func tearDown() { folder = nil }

    /// `withProgram`: it copies itself, which takes time for a program with all its debug information; else it is said to be there.
    private func shadowVirt(_ words: String..., status: Int32 = 0, withProgram: Bool = false, line: UInt = #line) throws -> Ending {
        let ending = try execute([Product.program] + words + ["--root", root] + (withProgram || words.contains("--program") ? [] : ["--program", Self.program]))
        XCTAssertEqual(ending.status, status, "\(words): \(ending)", line: line)
        return ending
    }

    private func text(_ path: String) -> String? { FileManager.default.contents(atPath: root + path).map { String(decoding: $0, as: UTF8.self) } }

    private func mode(_ path: String) -> mode_t {
        var status = stat()
        return stat(root + path, &status) == 0 ? status.st_mode & 0o7777 : 0
    }

    /// Paths of all files.
    private var files: [String] {
        let all = (FileManager.default.enumerator(atPath: root)?.allObjects as? [String]) ?? []
        return all.filter { path in
            var status = stat()
            return lstat(root + "/" + path, &status) == 0 && status.st_mode & S_IFMT != S_IFDIR
        }.map { "/" + $0 }.sorted()
    }

    private static let program = "/usr/local/bin/shadow-virt", hookProgram = "/usr/local/libexec/shadow-virt-hook"
    private static let hook = "/etc/libvirt/hooks/qemu.d/50-shadow-virt", unit = "/usr/local/lib/systemd/system/shadow-virt.service"
    private static let expected = [
        "/etc/libvirt/hooks/qemu.d/50-shadow-virt", "/etc/shadow-virt/shadow-virt.conf",
        "/usr/local/lib/systemd/system/shadow-virt.service", "/usr/local/share/bash-completion/completions/shadow-virt",
        "/usr/local/share/man/man1/shadow-virt.1", "/usr/local/share/man/man5/shadow-virt.conf.5", "/var/lib/shadow-virt/installed",
    ]

    func testInstallTwiceAndUninstall() throws {
        let first = try shadowVirt("install", withProgram: true)
        XCTAssertEqual(files, (Self.expected + [Self.program, Self.hookProgram]).sorted())
        XCTAssertEqual(first.out.split(separator: "\n").filter { $0.hasPrefix("Installed \(root)/") }.count, 8, first.out)
        XCTAssertEqual(mode(Self.hook), 0o755)
        XCTAssertEqual(mode(Self.program), 0o755)
        XCTAssertEqual(mode(Self.hookProgram), 0o755)
        XCTAssertEqual(mode(Self.unit), 0o644)
        XCTAssertTrue(text(Self.hook)?.contains("program='/usr/local/libexec/shadow-virt-hook'\n") ?? false)
        XCTAssertTrue(text(Self.unit)?.contains("ExecStart=/usr/local/bin/shadow-virt serve\n") ?? false)
        XCTAssertEqual(text("/etc/shadow-virt/shadow-virt.conf"), try String(contentsOfFile: Product.repository + "/examples/shadow-virt.conf", encoding: .utf8))
        XCTAssertTrue(FileManager.default.contentsEqual(atPath: root + Self.program, andPath: Product.program))
        XCTAssertTrue(FileManager.default.contentsEqual(atPath: root + Self.hookProgram, andPath: Product.hookProgram))

        let second = try shadowVirt("install", withProgram: true)
        XCTAssertEqual(second.out.split(separator: "\n").filter { $0.hasPrefix("Unchanged ") }.count, 7, second.out)
        XCTAssertTrue(second.out.contains("Kept \(root)/etc/shadow-virt/shadow-virt.conf"))
        XCTAssertEqual(files, (Self.expected + [Self.program, Self.hookProgram]).sorted())

        _ = try shadowVirt("uninstall", withProgram: true)
        XCTAssertEqual(files, ["/etc/shadow-virt/shadow-virt.conf"])
        _ = try shadowVirt("uninstall", withProgram: true)
    }

    func testUninstallPurge() throws {
        _ = try shadowVirt("install")
        _ = try folder.write("secret", to: "etc/shadow-virt/secret")
        _ = try folder.write("{}", to: "var/lib/shadow-virt/protections/x.json")
        _ = try shadowVirt("uninstall", "--purge")
        XCTAssertEqual(files, [])
        XCTAssertFalse(FileManager.default.fileExists(atPath: root + "/etc/libvirt"), "a folder that `install` made")
    }

    func testPurgeKeepsFoldersOfOthers() throws {
        _ = try folder.write("state_dir = \"/srv/data\"\n", to: "etc/shadow-virt/shadow-virt.conf")
        _ = try folder.write("mine", to: "srv/data/precious")
        let ending = try shadowVirt("uninstall", "--purge")
        XCTAssertTrue(ending.out.contains("Kept, because it may hold other things, \(root)/srv/data"), ending.out)
        XCTAssertEqual(files, ["/srv/data/precious"])
    }

    func testDryRunChangesNothing() throws {
        let ending = try shadowVirt("install", "--dry-run")
        XCTAssertTrue(ending.out.contains("Would be: Installed \(root)\(Self.hook)"), ending.out)
        XCTAssertEqual(files, [])
        _ = try shadowVirt("install")
        let before = files
        XCTAssertTrue(try shadowVirt("uninstall", "--dry-run").out.contains("Would be: Removed \(root)\(Self.hook)"))
        XCTAssertEqual(files, before)
    }

    func testFilesOfOthersAreNotOverwritten() throws {
        _ = try folder.write("#!/bin/sh\n# somebody's\n", to: String(Self.hook.dropFirst()), mode: 0o755)
        let refused = try shadowVirt("install", status: 1)
        XCTAssertTrue(refused.err.contains("Not written by this command, or changed since: \(root)\(Self.hook)"), refused.err)
        XCTAssertEqual(files, [Self.hook], "nothing else was written either")
        _ = try shadowVirt("install", "--force")
        XCTAssertEqual(files, Self.expected)
    }

    func testChangedFilesAreNotOverwrittenNorRemoved() throws {
        _ = try shadowVirt("install")
        _ = try folder.write((text(Self.unit) ?? "") + "# mine\n", to: String(Self.unit.dropFirst()))
        XCTAssertTrue(try shadowVirt("install", status: 1).err.contains(Self.unit))
        let refused = try shadowVirt("uninstall", status: 1)
        XCTAssertTrue(refused.err.contains(Self.unit) && refused.err.contains("Nothing was changed"), refused.err)
        XCTAssertEqual(files, Self.expected)
        _ = try shadowVirt("uninstall", "--force")
        XCTAssertEqual(files, ["/etc/shadow-virt/shadow-virt.conf"])
    }

    func testUpgradeReplacesWhatAnOlderReleaseWrote() throws {
        let old = "[Unit]\nDescription=an older release\n"
        _ = try folder.write(old, to: String(Self.unit.dropFirst()))
        _ = try folder.write("file \(InstallationManifest.hash(Array(old.utf8))) \(Self.unit)\nfile 0123456789abcdef /usr/local/bin/gone\n", to: "var/lib/shadow-virt/installed")
        XCTAssertTrue(try shadowVirt("install").out.contains("Updated \(root)\(Self.unit)"))
        XCTAssertEqual(files, Self.expected)
    }

    func testSymbolicLinkIsNotFollowed() throws {
        let target = try folder.write("precious", to: "srv/precious")
        try FileManager.default.createDirectory(atPath: root + "/etc/libvirt/hooks/qemu.d", withIntermediateDirectories: true)
        symlink(target, root + Self.hook)
        XCTAssertTrue(try shadowVirt("install", status: 1).err.contains(Self.hook))
        _ = try shadowVirt("install", "--force")
        XCTAssertEqual(text("/srv/precious"), "precious")
        XCTAssertTrue(text(Self.hook)?.hasPrefix("#!/bin/sh") ?? false)
    }

    func testOnlyAndProgramAndPrefix() throws {
        _ = try shadowVirt("install", "--only", "hook", "--program", "/opt/x/shadow-virt")
        XCTAssertEqual(files, [Self.hook, "/var/lib/shadow-virt/installed"])
        XCTAssertTrue(text(Self.hook)?.contains("program='/opt/x/shadow-virt-hook'\n") ?? false)
        _ = try shadowVirt("uninstall", "--only", "hook")
        XCTAssertEqual(files.filter { $0 != "/var/lib/shadow-virt/installed" }, [])
        _ = try shadowVirt("install", "--prefix", "/usr", withProgram: true)
        XCTAssertTrue(files.contains("/usr/bin/shadow-virt") && files.contains("/usr/libexec/shadow-virt-hook") && files.contains("/usr/lib/systemd/system/shadow-virt.service"))
    }

    func testAppArmorLinesAmongOthers() throws {
        let local = "/etc/apparmor.d/local/abstractions/libvirt-qemu"
        _ = try shadowVirt("install")
        XCTAssertNil(text(local), "nobody includes it")
        _ = try folder.write("", to: "etc/apparmor.d/abstractions/libvirt-qemu")
        _ = try folder.write("# site\n/srv/** r,\n", to: String(local.dropFirst()), mode: 0o640)
        _ = try shadowVirt("install")
        let installed = try XCTUnwrap(text(local))
        XCTAssertTrue(installed.hasPrefix("# site\n/srv/** r,\n\(MarkedBlock.begin)\n"), installed)
        XCTAssertTrue(installed.contains("  /run/shadow-virt/*/*.sock rw,\n"), installed)
        XCTAssertEqual(mode(local), 0o640)
        _ = try shadowVirt("install")
        XCTAssertEqual(text(local), installed)
        _ = try shadowVirt("uninstall")
        XCTAssertEqual(text(local), "# site\n/srv/** r,\n")
    }

    /// libvirt's daemon runs its hooks under its own profile.
    func testAppArmorLinesOfTheDaemonsThatAreThere() throws {
        _ = try folder.write("", to: "etc/apparmor.d/usr.sbin.virtqemud")
        _ = try shadowVirt("install")
        XCTAssertEqual(text("/etc/apparmor.d/local/usr.sbin.virtqemud")?.split(separator: "\n").map(String.init),
                       [MarkedBlock.begin, "  # What libvirt's hook runs", "  \(Self.program)-hook PUx,", MarkedBlock.end])
        XCTAssertNil(text("/etc/apparmor.d/local/usr.sbin.libvirtd"), "nobody includes it")
    }

    /// Somebody built the one and not the other.
    func testHookProgramIsMissing() throws {
        let alone = try TemporaryFolder()
        if link(Product.program, alone.path + "/shadow-virt") != 0 {
            try FileManager.default.copyItem(atPath: Product.program, toPath: alone.path + "/shadow-virt")
        }
        let ending = try execute([alone.path + "/shadow-virt", "install", "--root", root])
        XCTAssertEqual(ending.status, 1, "\(ending)")
        XCTAssertTrue(ending.err.contains("There is no \(alone.path)/shadow-virt-hook") && ending.err.contains("--product shadow-virt-hook"), ending.err)
        XCTAssertEqual(files, [])
    }

    func testWithoutRights() throws {
        var words = [Product.program, "install", "--only", "hook", "--root", root]
        if geteuid() == 0 {
            try skipUnlessInstalled("setpriv", package: "util-linux")
            let nobody = ["setpriv", "--reuid=65534", "--clear-groups"]
            try XCTSkipUnless(try execute(nobody + ["test", "-x", Product.program]).status == 0, "nobody may not run \(Product.program)")
            words = nobody + words
        } else {
            chmod(root, 0o555)
        }
        let ending = try execute(words)
        chmod(root, 0o755)
        XCTAssertEqual(ending.status, 1)
        XCTAssertTrue(ending.err.contains("Permission denied") && ending.err.contains("Run it as root"), ending.err)
        XCTAssertEqual(files, [])
    }

    func testBadInput() throws {
        XCTAssertTrue(try shadowVirt("install", "--only", "hook,everything", status: 64).err.contains("Unknown part 'everything'"))
        XCTAssertTrue(try shadowVirt("install", "--prefix", "usr", status: 64).err.contains("needs an absolute path"))
        XCTAssertEqual(try execute([Product.program, "install", "--root", root + "/nothing"]).status, 1)
        _ = try folder.write("gibberish\n", to: "var/lib/shadow-virt/installed")
        XCTAssertTrue(try shadowVirt("install", status: 1).err.contains("is not a list of installed files: 'gibberish'"))
        _ = try folder.write("peers = 7\n", to: "etc/shadow-virt/shadow-virt.conf")
        XCTAssertEqual(try shadowVirt("install", status: 1).out, "")
    }

    func testMarkedBlock() {
        XCTAssertEqual(MarkedBlock.replacing(in: "", with: "a"), "\(MarkedBlock.begin)\na\n\(MarkedBlock.end)\n")
        let text = "x\n\(MarkedBlock.begin)\nold\n\(MarkedBlock.end)\ny\n"
        XCTAssertEqual(MarkedBlock.replacing(in: text, with: "new\n"), "x\n\(MarkedBlock.begin)\nnew\n\(MarkedBlock.end)\ny\n")
        XCTAssertEqual(MarkedBlock.replacing(in: text, with: nil), "x\ny\n")
        XCTAssertEqual(MarkedBlock.replacing(in: "x", with: nil), "x\n")
        // Its end mark was deleted: what follows may be somebody's.
        XCTAssertEqual(MarkedBlock.replacing(in: "\(MarkedBlock.begin)\ny\n", with: nil), "y\n")
    }

    func testManifest() throws {
        var manifest = InstallationManifest()
        manifest.files = ["/a b": "0123456789abcdef", "/c": "fedcba9876543210"]
        manifest.folders = ["/x", "/x/y z"]
        XCTAssertEqual(try InstallationManifest(text: manifest.text, file: "f"), manifest)
        for bad in ["file 12 /a", "file 0123456789abcdef", "folder x", "file 0123456789abcdef a", "x"] {
            XCTAssertThrowsError(try InstallationManifest(text: bad, file: "f"), bad)
        }
    }
}
