import Configuration
import Foundation
import Platform
import XCTest
@testable import Health

/// IPMI 1.5 and K_g, against a running ipmi_sim; drivers in band, as far as there is none.
final class SessionTests: XCTestCase {
    private var folder: Folder!

    override func setUpWithError() throws {
        folder = try Folder()
        try XCTSkipIf(access(builtExecutable, X_OK) != 0, "No shadow-virt at \(builtExecutable)")
    }

    override func tearDown() { folder = nil }

    private func read(_ configuration: ServiceConfiguration) -> Result<BMCReply, BMCFailure> {
        let reader = BMCReader(configuration, executable: builtExecutable, limits: .init(silence: 1000, total: 10_000))
        do throws(BMCFailure) { return .success(try reader.read(known: nil)) } catch { return .failure(error) }
    }

    private func failure(_ configuration: ServiceConfiguration, line: UInt = #line) -> String {
        guard case .failure(let failure) = read(configuration) else {
            XCTFail("It let us in", line: line)
            return ""
        }
        return "\(failure)"
    }

    private func sensors(_ configuration: ServiceConfiguration) throws -> Int { try read(configuration).get().sensors.count }

    // MARK: IPMI 1.5

    func testOldIPMI() throws {
        let bmc = try SimulatedBMC(in: folder.path, authentications: ["none", "straight", "md2", "md5"])
        for kind in BMCAuthentication.allCases {
            let configuration = try folder.configuration(port: bmc.port, "bmc_protocol = \"1.5\"", "bmc_workarounds = [ ]", "bmc_authentication = \"\(kind.rawValue)\"")
            XCTAssertEqual(try sensors(configuration), SimulatedBMC.sensorCount, kind.rawValue)
        }
    }

    func testOldIPMIThatRefuses() throws {
        let bmc = try SimulatedBMC(in: folder.path)
        let old = ["bmc_protocol = \"1.5\"", "bmc_workarounds = [ ]"]
        let kind = failure(try folder.configuration(port: bmc.port, old[0], old[1], "bmc_authentication = \"straight\""))
        XCTAssertTrue(kind.contains("does not offer the authentication 'straight'. Set bmc_authentication"), kind)
        let password = failure(try folder.configuration(port: bmc.port, password: "guess", old[0], old[1]))
        XCTAssertTrue(password.contains("refuses the password of user 'watch'"), password)
        let long = failure(try folder.configuration(port: bmc.port, password: "seventeen letters", old[0], old[1]))
        XCTAssertTrue(long.contains("The BMC's password has 17 bytes. IPMI 1.5 has room for 16"), long)
    }

    // MARK: K_g

    func testKey() throws {
        let bmc = try SimulatedBMC(in: folder.path, key: "key-of-the-BMC")
        let without = failure(try folder.configuration(port: bmc.port))
        XCTAssertTrue(without.contains("wants a key (K_g) beside the password. Write it into a file that bmc_kg_file names"), without)
        let path = try folder.file("kg", "key-of-the-BMC\n")
        let configuration = try folder.configuration(port: bmc.port, "bmc_kg_file = \"\(path)\"")
        XCTAssertEqual(try sensors(configuration), SimulatedBMC.sensorCount)
        _ = try folder.file("kg", "0x" + "key-of-the-BMC".utf8.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined())
        XCTAssertEqual(try sensors(configuration), SimulatedBMC.sensorCount)
        _ = try folder.file("kg", "another")
        let wrong = failure(configuration)
        XCTAssertTrue(wrong.contains("refuses the key K_g. Correct what is in bmc_kg_file"), wrong)
    }

    func testKeyFiles() throws {
        let path = try folder.file("kg", "0x0102ff\n")
        let configuration = try folder.configuration(port: 1, "bmc_kg_file = \"\(path)\"")
        XCTAssertEqual(try configuration.loadBMCKey(), [1, 2, 255])
        let cases = [("0x123", "no pairs of hexadecimal digits"), ("0x", "no pairs"), ("0xzz", "no pairs"), ("0x" + String(repeating: "00", count: 21), "has 21 bytes"),
                     (String(repeating: "k", count: 21), "key K_g has 21 bytes. IPMI 2.0 has room for 20"), (String(repeating: "k", count: 50), "has 50 bytes")]
        for (text, expected) in cases {
            _ = try folder.file("kg", text)
            XCTAssertThrowsError(try configuration.loadBMCKey(), text) { XCTAssertTrue("\($0)".contains(expected), "\($0)") }
        }
        _ = try folder.file("kg", "key", mode: 0o640)
        XCTAssertNoThrow(try configuration.loadBMCKey())
        _ = try folder.file("kg", "key", mode: 0o644)
        XCTAssertThrowsError(try configuration.loadBMCKey()) { XCTAssertTrue("\($0)".contains("The key K_g is open to other users (mode 644)"), "\($0)") }
        unlink(path)
        XCTAssertThrowsError(try configuration.loadBMCKey()) { XCTAssertTrue("\($0)".contains("The file with the BMC's key K_g does not exist"), "\($0)") }
    }

    // MARK: In band

    private func local(_ driver: BMCDriver, device: String? = nil) -> BMCRequest {
        var request = BMCRequest(cacheDirectory: "/x", silenceLimitMs: 1, totalLimitMs: 1)
        (request.session, request.driver, request.device) = (.driver, driver, device)
        return request
    }

    private func obstacle(_ request: BMCRequest, mayUsePorts: Bool = true) -> String {
        InBandCheck(request, root: folder.path, mayUsePorts: mayUsePorts).obstacle.map { "\($0)" } ?? "none"
    }

    private func place(_ path: String, _ bytes: [UInt8] = []) throws {
        let whole = folder.path + path
        try FileManager.default.createDirectory(atPath: (whole as NSString).deletingLastPathComponent, withIntermediateDirectories: true)
        XCTAssertTrue(FileManager.default.createFile(atPath: whole, contents: Data(bytes)))
    }

    func testDevicesOfDrivers() throws {
        XCTAssertTrue(obstacle(local(.openipmi)).hasPrefix("There is no /dev/ipmi0. Load the kernel's driver: `modprobe -a ipmi_si"), obstacle(local(.openipmi)))
        XCTAssertTrue(obstacle(local(.openipmi, device: "/dev/ipmi1")).hasPrefix("There is no /dev/ipmi1. "))
        XCTAssertTrue(obstacle(local(.ssif)).hasPrefix("There is no /dev/i2c-0. Load the bus's driver"))
        try place("/dev/i2c-3")
        XCTAssertEqual(obstacle(local(.ssif, device: "/dev/i2c-3")), "none")
        try place("/dev/ipmi/0")
        XCTAssertEqual(obstacle(local(.openipmi)), "none")
        var network = local(.openipmi)
        network.session = .lan20
        XCTAssertEqual(obstacle(network), "none")
    }

    func testPorts() throws {
        XCTAssertTrue(obstacle(local(.kcs)).hasPrefix("This host's firmware tells of no BMC: "), obstacle(local(.kcs)))
        // A BIOS with two strings, then a system without one, then the end.
        let before: [UInt8] = [0, 6, 0, 0, 1, 2] + Array("a\0b\0\0".utf8) + [1, 4, 1, 0, 0, 0]
        let interface: [UInt8] = [38, 18, 2, 0, 1] + [UInt8](repeating: 0, count: 13) + [0, 0], end: [UInt8] = [127, 4, 3, 0, 0, 0]
        XCTAssertEqual(InBandCheck.types(before + interface + end), [0, 1, 38, 127])
        for cut in 0..<(before + interface + end).count { _ = InBandCheck.types(Array((before + interface + end)[..<cut])) }
        XCTAssertEqual(InBandCheck.types([0, 0, 0, 0, 38, 4, 0, 0, 0, 0]), [], "a record without a length")
        try place("/sys/firmware/dmi/tables/DMI", before + end)
        XCTAssertTrue(obstacle(local(.kcs)).hasPrefix("This host's firmware tells of no BMC"))
        try place("/sys/firmware/dmi/tables/DMI", before + interface + end)
        XCTAssertEqual(obstacle(local(.kcs)), "none")
        XCTAssertTrue(obstacle(local(.kcs), mayUsePorts: false).hasPrefix("The driver 'kcs' may not use I/O ports. "))
        try place("/dev/ipmi0")
        XCTAssertTrue(obstacle(local(.kcs)).hasPrefix("The kernel's driver has the BMC (/dev/ipmi0)"))
    }
}
