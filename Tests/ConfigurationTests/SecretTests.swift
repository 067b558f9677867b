import Foundation
import XCTest
@testable import Configuration

final class SecretTests: XCTestCase {
    private func configuration(_ file: String, explicit: Bool = true) -> ServiceConfiguration {
        var configuration = ServiceConfiguration(environment: [:])
        configuration.secretFile = file
        configuration.secretFileIsExplicit = explicit
        return configuration
    }

    func testMissingFile() throws {
        let folder = try TemporaryFolder()
        XCTAssertNil(try configuration(folder.path("none"), explicit: false).loadSecret())
        XCTAssertThrowsError(try configuration(folder.path("none")).loadSecret()) {
            XCTAssertTrue("\($0)".contains("does not exist. Make it with `(umask 077; openssl"), "\($0)")
        }
    }

    func testSizes() throws {
        let folder = try TemporaryFolder()
        for (count, ending, accepted) in [(15, "", false), (15, "\n", false), (16, "", true), (16, "\r\n", true), (4096, "\n", true), (4097, "", false), (9000, "", false), (0, "\n", false)] {
            let file = try folder.write("s", String(repeating: "k", count: count) + ending, mode: 0o600)
            let secret = try? configuration(file).loadSecret()
            XCTAssertEqual(secret?.count, accepted ? count : nil, "\(count) bytes")
        }
    }

    func testModes() throws {
        let folder = try TemporaryFolder()
        for (mode, accepted) in [(0o600, true), (0o400, true), (0o640, true), (0o644, false), (0o604, false), (0o602, false), (0o601, false), (0o620, false)] {
            // A file each: one of mode 400 cannot be written again by an ordinary user.
            let file = try folder.write("s\(String(mode, radix: 8))", "0123456789abcdef", mode: mode_t(mode))
            let secret = try? configuration(file).loadSecret()
            XCTAssertEqual(secret != nil, accepted, String(mode, radix: 8))
        }
        let file = try folder.write("s", "0123456789abcdef", mode: 0o644)
        XCTAssertThrowsError(try configuration(file).loadSecret()) {
            XCTAssertEqual("\($0)", "\(file): The secret is open to other users (mode 644). Run `chmod 600 \(file)`; if others could read it, make a new one")
            XCTAssertFalse("\($0)".contains("0123456789abcdef"))
        }
    }

    func testListenWithoutSecretOnlyOnLoopback() throws {
        var configuration = ServiceConfiguration(environment: [:])
        for (address, allowed) in [("127.0.0.1:1", true), ("127.255.0.9:1", true), ("[::1]:1", true), ("0.0.0.0:1", false), ("[::]:1", false),
                                   ("192.0.2.1:1", false), ("128.0.0.1:1", false), ("[::ffff:127.0.0.1]:1", false), ("[::2]:1", false), ("[1::1]:1", false)] {
            configuration.listen = try XCTUnwrap(PeerAddress(address), address)
            XCTAssertNoThrow(try configuration.checkListenAllowed(secret: Data(count: 16)), address)
            XCTAssertEqual((try? configuration.checkListenAllowed(secret: nil)) != nil, allowed, address)
        }
    }
}

final class NameTests: XCTestCase {
    func testAddresses() {
        for text in ["1.2.3.4:5", "[::1]:65535", "b:1", "host-a.example.com:16520", "[fe80::1%eth0]:1"] {
            XCTAssertEqual(PeerAddress(text)?.description, text)
        }
        for text in ["", ":", ":1", "b", "b:", "b:0", "b:99999", "b:+1", "b:1x", "[]:1", "[::1]", "[::1]1", "[b]:1", "::1:1", "1.2.3:1", "1.2.3.4.5:1", "a b:1", "-b:1",
                     "[fe80::1%]:1", "b:١"] {
            XCTAssertNil(PeerAddress(text), text)
        }
        XCTAssertFalse(PeerAddress(host: "localhost", port: 1).isLoopback)
    }

    func testHostNames() {
        for name in ["a", "A-1_b.c", String(repeating: "x", count: 64)] { XCTAssertTrue(HostName.isValid(name), name) }
        for name in ["", "-a", ".a", "a b", "a/b", "ä", String(repeating: "x", count: 65), "a\n"] { XCTAssertFalse(HostName.isValid(name), name) }
    }

    func testClosestName() {
        let names = ["protect", "unprotect", "status", "swap"]
        for (word, expected) in [("portect", "protect"), ("stat", "status"), ("STATUS", "status"), ("swp", "swap"), ("frobnicate", nil), ("", nil), ("x", nil),
                                 (String(repeating: "s", count: 100_000), nil)] as [(String, String?)] {
            XCTAssertEqual(ClosestName.to(word, among: names), expected, String(word.prefix(20)))
        }
        XCTAssertEqual(ClosestName.distance("abcd", "acbd"), 1)
        XCTAssertEqual(ClosestName.distance("", "abc"), 3)
    }
}
