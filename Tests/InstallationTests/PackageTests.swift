import Foundation
import Glibc
import XCTest

/// The Debian package, made of the program under test, and everything that dpkg does with it.
final class PackageTests: XCTestCase {
    nonisolated(unsafe) private static var built: Result<(folder: TemporaryFolder, package: String), any Error>?

    override class func tearDown() { built = nil }

    /// Built once.
    private func package() throws -> String {
        for (tool, package) in [("dpkg-deb", "dpkg"), ("dpkg-shlibdeps", "dpkg-dev"), ("strip", "binutils")] { try skipUnlessInstalled(tool, package: package) }
        if Self.built == nil {
            Self.built = Result {
                let folder = try TemporaryFolder()
                let ending = try execute([Product.repository + "/examples/packaging/build-deb.sh", "--quick", "--program", Product.program, "--output", folder.path], limit: 120)
                guard ending.status == 0 else { throw Unmet(description: "build-deb.sh: \(ending)") }
                return (folder, ending.out.trimmingCharacters(in: .whitespacesAndNewlines))
            }
        }
        return try XCTUnwrap(Self.built).get().package
    }

    func testControl() throws {
        let package = try package()
        func field(_ name: String) throws -> String { try execute(["dpkg-deb", "-f", package, name]).out.trimmingCharacters(in: .whitespacesAndNewlines) }
        XCTAssertEqual(try field("Package"), "shadow-virt")
        let depends = try field("Depends")
        for library in ["libc6", "libvirt0", "libgnutls30", "liblz4-1", "libxxhash0"] {
            XCTAssertTrue(depends.contains(library), "\(library) is missing in: \(depends)")
        }
        let conffiles = try execute(["dpkg-deb", "--info", package, "conffiles"]).out
        XCTAssertEqual(conffiles, "/etc/libvirt/hooks/qemu.d/50-shadow-virt\n/etc/shadow-virt/shadow-virt.conf\n")
    }

    func testInstallRunRemovePurge() throws {
        let ending = try execute([Product.repository + "/Tests/Support/package-trial.sh", try package()], limit: 120)
        try XCTSkipIf(ending.status == 77, ending.out.trimmingCharacters(in: .whitespacesAndNewlines))
        XCTAssertEqual(ending.status, 0, "\(ending)")
        XCTAssertTrue(ending.out.hasSuffix("removed and purged: nothing left\n"), "\(ending)")
        XCTAssertFalse(FileManager.default.fileExists(atPath: "/var/lib/dpkg/info/shadow-virt.list"), "it was installed on this machine")
    }

    func testLintian() throws {
        try skipUnlessInstalled("lintian", package: "lintian")
        // The program under test finds Swift's runtime by a path; a package for others has it linked in.
        let ending = try execute(["lintian", "--allow-root", "--fail-on", "error", "--suppress-tags", "custom-library-search-path", try package()], limit: 120)
        XCTAssertEqual(ending.status, 0, "\(ending)")
    }

    func testScriptsAreClean() throws {
        try skipUnlessInstalled("shellcheck", package: "shellcheck")
        let folder = Product.repository + "/examples/packaging"
        let ending = try execute(["shellcheck"] + ["build-deb.sh", "postinst", "prerm", "postrm"].map { "\(folder)/\($0)" } + [Product.repository + "/Tests/Support/package-trial.sh"])
        XCTAssertEqual(ending.status, 0, ending.out)
    }

    func testBadInput() throws {
        let script = Product.repository + "/examples/packaging/build-deb.sh"
        XCTAssertEqual(try execute([script, "--nonsense"]).status, 64)
        XCTAssertEqual(try execute([script, "--program"]).status, 64)
        let missing = try execute([script, "--program", "/nonexistent"])
        XCTAssertEqual(missing.status, 1)
        XCTAssertTrue(missing.err.contains("There is no program /nonexistent"), missing.err)
    }
}
