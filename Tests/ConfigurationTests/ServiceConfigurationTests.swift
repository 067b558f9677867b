import Foundation
import XCTest
@testable import Configuration

/// The file that ships, from this source file's place.
let shippedFile = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("examples/shadow-virt.conf").path

final class ServiceConfigurationTests: XCTestCase {
    private func parse(_ text: String, environment: [String: String] = [:]) throws(ConfigurationError) -> ServiceConfiguration {
        try ServiceConfiguration(bytes: Array(text.utf8), file: "t.conf", environment: environment)
    }

    func testDefaults() throws {
        let configuration = try parse("")
        XCTAssertEqual(configuration.libvirtURI, "qemu:///system")
        XCTAssertEqual(configuration.listen.description, "127.0.0.1:16520")
        XCTAssertEqual(configuration.controlSocket, "/run/shadow-virt/control.sock")
        XCTAssertNil(configuration.controlSocketGroup)
        XCTAssertEqual(configuration.intervalMs, 20)
        XCTAssertEqual(configuration.unsentCeilingBytes, 268_435_456)
        XCTAssertFalse(configuration.hostName.isEmpty)
        XCTAssertEqual(configuration.telemetryInterval, 5)
        XCTAssertEqual(configuration.probeDirectories, [])
    }

    func testEveryKey() throws {
        let configuration = try parse("""
            host_name = "a.example.com"
            libvirt_uri = "qemu+ssh://root@x/system"
            listen = "[2001:db8::1]:1"
            control_socket = "/tmp/c.sock"
            control_socket_group = "libvirt"
            runtime_dir = "/tmp/r"
            state_dir = "/tmp/s"
            secret_file = "/tmp/secret"
            peers = [ "b 192.0.2.2:16520 qemu+ssh://root@b/system", "c  [fe80::1%eth0]:16520  qemu+tls://c/system", "d host-d:1 test:///default" ]
            interval_ms = 5
            interval_limit_ms = 60000
            unsent_ceiling_mib = 16
            keepalive_ms = 100
            peer_timeout_ms = 200
            telemetry_interval = 0
            probe_directories = [ "/srv/images", "/srv/more" ]
            log_level = "debug"
            bmc_address = "[2001:db8::9]"
            bmc_user = "watch"
            bmc_password_file = "/tmp/p"
            bmc_privilege = "operator"
            bmc_cipher_suite = 17
            bmc_workarounds = [ "opensesspriv", "discretereading", "opensesspriv" ]
            bmc_interval = 5
            bmc_protocol = "2.0"
            bmc_authentication = "md2"
            bmc_kg_file = "/tmp/kg"
            bmc_driver = "ssif"
            bmc_driver_device = "/dev/i2c-1"
            metrics_listen = "[::1]:9000"
            """)
        XCTAssertEqual(configuration.telemetryInterval, 0)
        XCTAssertEqual(configuration.probeDirectories, ["/srv/images", "/srv/more"])
        XCTAssertEqual(configuration.bmc.access, .network(PeerAddress(host: "2001:db8::9", port: 623)))
        XCTAssertEqual(configuration.bmc.privilege, .operator)
        XCTAssertEqual(configuration.bmc.workarounds, [.opensesspriv, .discretereading])
        XCTAssertEqual([configuration.bmc.cipherSuite, configuration.bmc.interval], [17, 5])
        XCTAssertEqual([configuration.bmc.kgFile, configuration.bmc.device], ["/tmp/kg", "/dev/i2c-1"])
        XCTAssertEqual([configuration.bmc.version.rawValue, configuration.bmc.authentication.rawValue, configuration.bmc.driver.rawValue], ["2.0", "md2", "ssif"])
        XCTAssertEqual(configuration.hostName, "a.example.com")
        XCTAssertEqual(configuration.listen, PeerAddress(host: "2001:db8::1", port: 1))
        XCTAssertEqual(configuration.controlSocketGroup, "libvirt")
        XCTAssertTrue(configuration.secretFileIsExplicit)
        XCTAssertEqual(configuration.peers.map(\.name), ["b", "c", "d"])
        XCTAssertEqual(configuration.peer(named: "B")?.address.description, "192.0.2.2:16520")
        XCTAssertEqual(configuration.peers[1].address.host, "fe80::1%eth0")
        XCTAssertEqual(configuration.peers[2].libvirtURI, "test:///default")
        XCTAssertNil(configuration.peer(named: "e"))
        XCTAssertEqual([configuration.intervalMs, configuration.intervalLimitMs, configuration.unsentCeilingMiB], [5, 60000, 16])
        XCTAssertEqual(configuration.logLevel, .debug)
        XCTAssertEqual(configuration.metricsListen, PeerAddress(host: "::1", port: 9000))
        XCTAssertNil(try parse("metrics_listen = \"off\"").metricsListen)
        XCTAssertEqual(try parse("").metricsListen?.description, "127.0.0.1:16521")
    }

    func testEnvironmentNamesLibvirtUnlessTheFileDoes() throws {
        let environment = ["LIBVIRT_DEFAULT_URI": "qemu:///session"]
        XCTAssertEqual(try parse("", environment: environment).libvirtURI, "qemu:///session")
        XCTAssertEqual(try parse("libvirt_uri = 'test:///default'", environment: environment).libvirtURI, "test:///default")
        XCTAssertEqual(try parse("", environment: ["LIBVIRT_DEFAULT_URI": ""]).libvirtURI, "qemu:///system")
    }

    func testRefusals() {
        let cases: [(text: String, line: Int, column: Int, contains: String)] = [
            ("intervall_ms = 20", 1, 1, "Unknown key 'intervall_ms'. Did you mean 'interval_ms'?"),
            ("peer = []", 1, 1, "Did you mean 'peers'?"),
            ("zzz = 1", 1, 1, "The known keys are host_name, libvirt_uri"),
            ("interval_ms = 4", 1, 15, "4 is out of range. Use 5 to 60000"),
            ("interval_ms = 60001", 1, 15, "out of range"),
            ("interval_ms = \"20\"", 1, 15, "Expected a whole number"),
            ("interval_ms = 2000", 1, 15, "interval_limit_ms (1000) is below interval_ms (2000)"),
            ("unsent_ceiling_mib = 15", 1, 22, "Use 16 to 65536"),
            ("keepalive_ms = 4000", 1, 16, "peer_timeout_ms (5000) is less than twice keepalive_ms (4000)"),
            ("host_name = \"a b\"", 1, 13, "no host name"),
            ("host_name = 7", 1, 13, "Expected a string"),
            ("host_name = \"\"\"a\nb\"\"\"", 1, 13, "control character"),
            ("libvirt_uri = \"localhost\"", 1, 15, "no libvirt URI"),
            ("listen = \"127.0.0.1\"", 1, 10, "no address to listen on"),
            ("listen = \"localhost:16520\"", 1, 10, "no address to listen on"),
            ("metrics_listen = \"on\"", 1, 18, "Write a numeric address and a port, \"127.0.0.1:16521\", or \"off\""),
            ("metrics_listen = \"localhost:1\"", 1, 18, "no address to listen on"),
            ("metrics_listen = 9817", 1, 18, "Expected a string"),
            ("metrics_listen = \"127.0.0.1:16520\"", 1, 18, "metrics_listen and listen are the same address"),
            ("listen = \"2001:db8::1:16520\"", 1, 10, "no address to listen on"),
            ("listen = \"127.0.0.1:0\"", 1, 10, "no address to listen on"),
            ("listen = \"127.0.0.1:65536\"", 1, 10, "no address to listen on"),
            ("control_socket = \"run/x\"", 1, 18, "not an absolute path"),
            ("control_socket = \"/\(String(repeating: "x", count: 107))\"", 1, 18, "at most 107 bytes"),
            ("control_socket_group = \"a:b\"", 1, 24, "no group name"),
            ("log_level = \"verbose\"", 1, 13, "no log level"),
            ("bmc_address = \"2001:db8::9\"", 1, 15, "no address of a BMC"),
            ("bmc_address = \"b:0\"", 1, 15, "no address of a BMC"),
            ("bmc_user = \"seventeen letters\"", 1, 12, "has 17 bytes"),
            ("bmc_privilege = \"root\"", 1, 17, "no privilege level"),
            ("bmc_cipher_suite = 4", 1, 20, "Use one of 0, 1, 2, 3, 6"),
            ("bmc_interval = 4", 1, 16, "Use 5 to 3600"),
            ("bmc_workarounds = [ \"opensespriv\" ]", 1, 21, "Did you mean 'opensesspriv'?"),
            ("bmc_workarounds = \"opensesspriv\"", 1, 19, "Expected a list"),
            ("bmc_address = \"local\"\nbmc_workarounds = [ \"opensesspriv\" ]", 2, 19, "is for a BMC on the network that speaks IPMI 2.0"),
            ("bmc_address = \"b\"\nbmc_workarounds = [ \"spinpoll\" ]", 2, 19, "is for a BMC of the host itself"),
            ("bmc_address = \"b\"\nbmc_workarounds = [ \"idzero\" ]", 2, 19, "is for a BMC on the network that speaks IPMI 1.5"),
            ("bmc_address = \"b\"\nbmc_protocol = \"1.5\"\nbmc_workarounds = [ \"intel20\" ]", 3, 19, "is for a BMC on the network that speaks IPMI 2.0"),
            ("bmc_protocol = \"3.0\"", 1, 16, "'3.0' is no version of IPMI. Use \"1.5\" or \"2.0\""),
            ("bmc_authentication = \"sha\"", 1, 22, "Use \"none\", \"straight\", \"md2\" or \"md5\""),
            ("bmc_address = \"b\"\nbmc_protocol = \"1.5\"\nbmc_kg_file = \"/k\"", 3, 15, "IPMI 1.5 knows no key K_g"),
            ("bmc_driver = \"sunbmc\"", 1, 14, "'sunbmc' is no driver for a BMC"),
            ("bmc_address = \"local\"\nbmc_driver = \"kcs\"\nbmc_driver_device = \"/dev/x\"", 3, 21, "opens no device"),
            ("peers = \"b 192.0.2.2:1 test:///default\"", 1, 9, "Expected a list"),
            ("peers = [ 7 ]", 1, 11, "Expected a string"),
            ("peers = [\n \"b 192.0.2.2:1\"\n]", 2, 2, "Expected three words"),
            ("peers = [ \"b/c 192.0.2.2:1 test:///d\" ]", 1, 11, "'b/c' is no name for a peer"),
            ("peers = [ \"b 192.0.2.300:1 test:///d\" ]", 1, 11, "no address of a peer"),
            ("peers = [ \"b 192.0.2.2 test:///d\" ]", 1, 11, "no address of a peer"),
            ("peers = [ \"b 192.0.2.2:1 b\" ]", 1, 11, "no libvirt URI"),
            ("peers = [ \"b 192.0.2.2:1 test:///d\",\n\"B 192.0.2.3:1 test:///d\" ]", 2, 1, "Two peers are called 'b'"),
            ("peers = [ \"b 192.0.2.2:1 test:///d\",\n\"c 192.0.2.2:1 test:///d\" ]", 2, 1, "same address 192.0.2.2:1"),
            ("host_name = 'b'\npeers = [ \"b 192.0.2.2:1 test:///d\" ]", 2, 9, "has the name of this host"),
            ("peers = [ \"b 127.0.0.1:16520 test:///d\" ]", 1, 9, "has the address that this host listens on"),
        ]
        for (text, line, column, expected) in cases {
            do {
                _ = try parse(text)
                XCTFail("\(text) was accepted")
            } catch {
                XCTAssertTrue(error.description.contains(expected), "\(text): \(error)")
                XCTAssertEqual(error.position, .init(line: line, column: column), text)
                XCTAssertFalse(error.advice.isEmpty, text)
            }
        }
    }

    /// With its keys in force: as it ships, it is one long comment.
    func testShippedFileCutAtEveryByteNeverTraps() throws {
        let keys = try String(contentsOfFile: shippedFile, encoding: .utf8).components(separatedBy: "\n")
            .map { $0.hasPrefix("#") && $0.dropFirst().first?.isLetter == true ? String($0.dropFirst()) : $0 }.filter { !$0.hasPrefix("#") }
        let bytes = Array(keys.joined(separator: "\n").utf8)
        XCTAssertGreaterThan(bytes.count, 500)
        for end in 0...bytes.count { _ = try? ServiceConfiguration(bytes: Array(bytes[..<end]), file: "t", environment: [:]) }
    }

    // MARK: Files

    func testFiles() throws {
        let folder = try TemporaryFolder()
        let missing = folder.path("none.conf")
        XCTAssertEqual(try ServiceConfiguration.load(path: missing, environment: [:]).file, missing)
        XCTAssertThrowsError(try ServiceConfiguration.load(path: missing, mustExist: true)) {
            XCTAssertTrue("\($0)".contains("There is no such file"), "\($0)")
        }
        let file = try folder.write("a.conf", "interval_ms = 50")
        XCTAssertEqual(try ServiceConfiguration.load(path: file, mustExist: true).intervalMs, 50)
        XCTAssertThrowsError(try ServiceConfiguration.load(path: folder.path(""))) {
            XCTAssertTrue("\($0)".contains("Is a directory"), "\($0)")
        }
        let large = try folder.write("large.conf", String(repeating: "#", count: ConfDocument.sizeCeiling + 1))
        XCTAssertThrowsError(try ServiceConfiguration.load(path: large)) {
            XCTAssertTrue("\($0)".contains("larger than 1048576 bytes"), "\($0)")
        }
        let full = try folder.write("full.conf", String(repeating: "#", count: ConfDocument.sizeCeiling))
        XCTAssertNoThrow(try ServiceConfiguration.load(path: full))
    }
}

/// Every key that the parser knows stands in the file that ships, commented out with its real default, and is explained.
final class ShippedFileTests: XCTestCase {
    private func lines() throws -> [String] {
        try String(contentsOfFile: shippedFile, encoding: .utf8).components(separatedBy: "\n")
    }

    /// `#key = value` without a space behind '#'; prose and instances have one.
    private func defaultLines() throws -> [String] {
        try lines().filter { $0.hasPrefix("#") && $0.dropFirst().first?.isLetter == true }.map { String($0.dropFirst()) }
    }

    func testParsesAndIsTheDefaults() throws {
        var shipped = try ServiceConfiguration.load(path: shippedFile, mustExist: true, environment: [:])
        shipped.file = ServiceConfiguration.defaultPath
        XCTAssertEqual(shipped, ServiceConfiguration(environment: [:]))
    }

    func testEveryKeyIsThereOnceInOrder() throws {
        let documented = try defaultLines().map { $0.components(separatedBy: " = ")[0] }
        XCTAssertEqual(documented.sorted(), ServiceConfiguration.keyNames.sorted())
        XCTAssertEqual(Set(documented).count, documented.count)
    }

    func testTheDefaultsShownAreTheRealOnes() throws {
        var shown = try ServiceConfiguration(bytes: Array(defaultLines().joined(separator: "\n").utf8),
                                             file: ServiceConfiguration.defaultPath, environment: [:])
        XCTAssertTrue(shown.secretFileIsExplicit)
        shown.secretFileIsExplicit = false
        XCTAssertEqual(shown, ServiceConfiguration(environment: [:]))
    }

    func testEveryKeyIsExplained() throws {
        let lines = try lines()
        for (index, line) in lines.enumerated() where line.hasPrefix("#") && line.dropFirst().first?.isLetter == true {
            XCTAssertTrue(lines[index - 1].hasPrefix("# "), "\(line) has no explanation above it")
        }
    }

    func testTheInstanceOfPeersParses() throws {
        let text = try lines().filter { $0.hasPrefix("#   ") }.map { $0.dropFirst(4) }.joined(separator: "\n")
        guard let start = text.range(of: "peers = [") else { return XCTFail("no instance of peers") }
        let configuration = try ServiceConfiguration(bytes: Array(text[start.lowerBound...].utf8), file: "t", environment: [:])
        XCTAssertEqual(configuration.peers.map(\.name), ["b", "c"])
    }

    func testRangesAreDocumented() throws {
        let text = try lines().joined(separator: "\n")
        for range in ["5 to 60000", "16 to 65536", "50 to 60000", "100 to 600000", "16 to 4096", "5 to 3600"] {
            XCTAssertTrue(text.contains(range), range)
        }
    }
}

/// A folder that goes away with its owner.
final class TemporaryFolder {
    private let folder: URL

    init() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("shadow-virt-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(at: folder) }

    func path(_ name: String) -> String { folder.appendingPathComponent(name).path }

    func write(_ name: String, _ text: String, mode: mode_t = 0o644) throws -> String {
        try Data(text.utf8).write(to: URL(fileURLWithPath: path(name)))
        chmod(path(name), mode)
        return path(name)
    }
}
