import Foundation
import XCTest
@testable import Commands

/// The unit and the AppArmor lines, judged by those who read them.
final class SystemFilesTests: XCTestCase {
    private var folder: TemporaryFolder!

    override func setUpWithError() throws { folder = try TemporaryFolder() }
    override func tearDown() { folder = nil }

    private func installed(_ part: String) throws {
        let ending = try execute([Product.program, "install", "--root", folder.path, "--only", part, "--program", Product.program])
        XCTAssertEqual(ending.status, 0, ending.err)
    }

    private func unit() throws -> String {
        try installed("unit")
        return folder.path + "/usr/local/lib/systemd/system/shadow-virt.service"
    }

    func testUnitIsValid() throws {
        try skipUnlessInstalled("systemd-analyze", package: "systemd")
        let ending = try execute(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", try unit()])
        // Without systemd as process 1 it has remarks of its own; what concerns the unit names it.
        let remarks = (ending.out + ending.err).split(separator: "\n").filter { $0.contains("shadow-virt.service") }
        XCTAssertEqual(remarks, [])
        XCTAssertEqual(ending.status, 0, ending.err)
    }

    func testUnitIsHardened() throws {
        try skipUnlessInstalled("systemd-analyze", package: "systemd")
        let ending = try execute(["systemd-analyze", "security", "--offline=true", "--no-pager", try unit()])
        let line = try XCTUnwrap(ending.out.split(separator: "\n").first { $0.contains("Overall exposure level") }, "\(ending)")
        print("MEASURED \(line.trimmingCharacters(in: .whitespaces))")
        let exposure = try XCTUnwrap(line.split(separator: " ").compactMap { Double($0) }.first, String(line))
        // 9.6 without any of it; root, /proc/PID/fd and device nodes are what the service is about.
        XCTAssertLessThan(exposure, 5)
    }

    func testUnitAsksForWatchdogAndReload() throws {
        let text = try String(contentsOfFile: try unit(), encoding: .utf8)
        for line in ["Type=notify", "WatchdogSec=30s", "ExecReload=/bin/kill -HUP $MAINPID", "StateDirectory=shadow-virt", "RuntimeDirectory=shadow-virt",
                     "ExecStart=\(Product.program) serve", "KillMode=process", "NoNewPrivileges=yes"] {
            XCTAssertTrue(text.contains("\n\(line)\n"), line)
        }
        let after = try XCTUnwrap(text.split(separator: "\n").first { $0.hasPrefix("After=") })
        XCTAssertTrue(after.contains("virtqemud.socket") && after.contains("libvirtd.socket"))
    }

    // MARK: What is for some hosts only

    private func example(_ name: String, as path: String? = nil) throws -> String {
        try folder.write(try String(contentsOfFile: "\(Product.repository)/examples/\(name)", encoding: .utf8), to: path ?? name)
    }

    /// What systemd says of a unit, remarks that name it.
    private func remarks(_ unit: String, about name: String) throws -> [String] {
        let ending = try execute(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit])
        return (ending.out + ending.err).split(separator: "\n").map(String.init).filter { $0.contains(name) }
    }

    func testSmartUnitIsValidAndHardened() throws {
        try skipUnlessInstalled("systemd-analyze", package: "systemd")
        let service = try example("shadow-virt-smart.service")
        XCTAssertEqual(try remarks(service, about: "shadow-virt-smart"), [])
        XCTAssertEqual(try remarks(try example("shadow-virt-smart.timer"), about: "shadow-virt-smart"), [])
        let ending = try execute(["systemd-analyze", "security", "--offline=true", "--no-pager", service])
        let line = try XCTUnwrap(ending.out.split(separator: "\n").first { $0.contains("Overall exposure level") }, "\(ending)")
        print("MEASURED SMART unit \(line.trimmingCharacters(in: .whitespaces))")
        XCTAssertLessThan(try XCTUnwrap(line.split(separator: " ").compactMap { Double($0) }.first, String(line)), 4)
    }

    /// The unit's own command, on a tree of this test's.
    func testSmartUnitPutsReportsAside() throws {
        let text = try String(contentsOfFile: try example("shadow-virt-smart.service"), encoding: .utf8)
        let command = try XCTUnwrap(text.components(separatedBy: "ExecStart=/bin/sh -c '").last?.components(separatedBy: "'\n").first)
        // As systemd reads it (systemd.service(5), "Command lines").
        let script = command.replacing("\\\n", with: " ").replacing("$$", with: "$").replacing("%%", with: "%")
            .replacing("/run/shadow-virt-smart", with: folder.path + "/run").replacing("/sys/block", with: folder.path + "/sys")
        for disk in ["sda", "sdb", "nvme0n1", "loop0", "sr0"] { _ = try folder.write("", to: "sys/\(disk)/size") }
        _ = try folder.write("old", to: "run/sdz.json")
        // A finding is an exit status; a disk that sleeps says nothing.
        let tool = try folder.write("#!/bin/sh\nfor disk; do :; done\n[ $disk = /dev/sdb ] && exit 2\necho \"{\\\"device\\\": \\\"$disk\\\", \\\"asked\\\": \\\"$*\\\"}\"\nexit 64\n", to: "bin/smartctl")
        chmod(tool, 0o755)
        let ending = try execute(["/bin/sh", "-c", script], environment: ["PATH": "\(folder.path)/bin:/usr/bin:/bin"])
        XCTAssertEqual(ending.out + ending.err, "")
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: folder.path + "/run").sorted(), ["nvme0n1.json", "sda.json"])
        XCTAssertEqual(try String(contentsOfFile: folder.path + "/run/sda.json", encoding: .utf8),
                       "{\"device\": \"/dev/sda\", \"asked\": \"--json --nocheck=standby -H -A /dev/sda\"}\n")
    }

    func testDropInForPortsIsValid() throws {
        try skipUnlessInstalled("systemd-analyze", package: "systemd")
        let unit = try unit()
        let dropIn = try example("ipmi-ports.conf", as: "usr/local/lib/systemd/system/shadow-virt.service.d/ipmi-ports.conf")
        XCTAssertEqual(try remarks(unit, about: "ipmi-ports.conf"), [])
        // It is read at all.
        try (String(contentsOfFile: dropIn, encoding: .utf8) + "Nonsense\n").write(toFile: dropIn, atomically: false, encoding: .utf8)
        XCTAssertNotEqual(try remarks(unit, about: "ipmi-ports.conf"), [])
    }

    // MARK: AppArmor

    private static let profiles = "/etc/apparmor.d"

    /// This machine's profiles with our lines among them.
    private func installedProfiles() throws -> String {
        try skipUnlessInstalled("apparmor_parser", package: "apparmor")
        try XCTSkipUnless(FileManager.default.fileExists(atPath: Self.profiles + "/abstractions/libvirt-qemu"), "no AppArmor profiles of libvirt (Debian: apt install libvirt-daemon-system)")
        try XCTSkipUnless(FileManager.default.fileExists(atPath: Self.profiles + "/abstractions/base"), "no AppArmor abstractions (Debian: apt install apparmor)")
        try FileManager.default.createDirectory(atPath: folder.path + "/etc", withIntermediateDirectories: true)
        try FileManager.default.copyItem(atPath: Self.profiles, toPath: folder.path + Self.profiles)
        try installed("apparmor")
        return folder.path + Self.profiles
    }

    /// Parsed, not loaded: as virt-aa-helper makes a guest's profile of libvirt's template.
    private func parse(_ profiles: String, _ options: [String] = []) throws -> Ending {
        let template = try String(contentsOfFile: profiles + "/libvirt/TEMPLATE.qemu", encoding: .utf8)
        let profile = try folder.write(template.replacing("LIBVIRT_TEMPLATE", with: "libvirt-00000000-1111-2222-3333-444444444444"), to: "profile")
        // -Q: nothing goes to the kernel, which need not have AppArmor; -K: no cache.
        return try execute(["apparmor_parser", "-Q", "-K", "--base", profiles] + options + [profile])
    }

    func testAppArmorProfileOfAGuestParses() throws {
        let ending = try parse(try installedProfiles())
        XCTAssertEqual(ending.status, 0, "\(ending)")
    }

    func testAppArmorProfileOfAGuestHoldsOurLines() throws {
        let profiles = try installedProfiles()
        let text = try parse(profiles, ["-p"]).out
        XCTAssertTrue(text.contains("/run/shadow-virt/*/*.sock rw,"), "the profile does not include our lines")
        // A rule that makes no sense is refused: the parser does read what stands there.
        let local = folder.path + InstallationLayout.appArmorLocal
        try (String(contentsOfFile: local, encoding: .utf8) + "  /run/x nonsense,\n").write(toFile: local, atomically: false, encoding: .utf8)
        XCTAssertNotEqual(try parse(profiles).status, 0)
    }

    func testAppArmorProfileOfTheDaemonHoldsOurLine() throws {
        let profiles = try installedProfiles()
        let profile = profiles + "/usr.sbin.libvirtd"
        try XCTSkipUnless(FileManager.default.fileExists(atPath: profile), "no AppArmor profile of libvirtd (Debian: apt install libvirt-daemon-system)")
        // Compiled, though not loaded: contradictions between our right to start a program and libvirt's would be found.
        let compiled = try execute(["apparmor_parser", "-Q", "-K", "--base", profiles, profile])
        XCTAssertEqual(compiled.status, 0, "\(compiled)")
        let text = try execute(["apparmor_parser", "-Q", "-K", "-p", "--base", profiles, profile]).out
        XCTAssertTrue(text.contains("  \(Product.hookProgram) PUx,"), "the profile does not include our line")
    }

    func testAppArmorIsEnforced() throws {
        let state = FileManager.default.contents(atPath: "/sys/module/apparmor/parameters/enabled").map { String(decoding: $0, as: UTF8.self) } ?? "N"
        try XCTSkipUnless(state.hasPrefix("Y"), "no AppArmor in this kernel: its rules are parsed, not enforced")
        try XCTSkipUnless(geteuid() == 0 && isInstalled("aa-exec"), "loading a profile needs root and aa-exec (Debian: apt install apparmor)")
        let profiles = try installedProfiles()
        let name = "shadow-virt-test-\(getpid())"
        let rules = try String(contentsOfFile: profiles + "/local/abstractions/libvirt-qemu", encoding: .utf8)
            .replacing("/run/shadow-virt/", with: folder.path + "/run/")
        let profile = try folder.write("profile \(name) {\n  #include <abstractions/base>\n  /usr/bin/* ix,\n\(rules)}\n", to: "enforced")
        XCTAssertEqual(try execute(["apparmor_parser", "-r", "-K", "--base", profiles, profile]).status, 0)
        defer { _ = try? execute(["apparmor_parser", "-R", "--base", profiles, profile]) }
        try FileManager.default.createDirectory(atPath: folder.path + "/run/guest", withIntermediateDirectories: true)
        XCTAssertEqual(try execute(["aa-exec", "-p", name, "--", "touch", folder.path + "/run/guest/colo.sock"]).status, 0)
        XCTAssertNotEqual(try execute(["aa-exec", "-p", name, "--", "touch", folder.path + "/elsewhere.sock"]).status, 0)
    }
}
