import ControlProtocol
import XCTest
@testable import Commands

/// Command lines about several shadows.
final class ShadowCommandTests: XCTestCase {
    private func request(_ words: String...) throws -> ControlRequest {
        let service = try FakeService(ControlResponse(done: "done"))
        let outcome = Harness().run(words + ["--socket", service.path])
        XCTAssertEqual(outcome.code, 0, outcome.err)
        return try ControlCodec.decode(ControlRequest.self, from: Array(XCTUnwrap(service.requests.first).utf8))
    }

    func testSeveralHosts() throws {
        let plain = try request("protect", "web1", "--to", "b")
        XCTAssertEqual(plain.to, "b")
        XCTAssertNil(plain.shadows, "one shadow is asked for as ever")
        let two = try request("protect", "web1", "--to", "b", "--to=c:10")
        XCTAssertEqual(two.to, "b")
        XCTAssertEqual(two.shadows, [ShadowChoice(host: "b"), ShadowChoice(host: "c", multiple: 10)])
        XCTAssertEqual(try request("protect", "web1", "--to", "b:5").shadows, [ShadowChoice(host: "b", multiple: 5)])
    }

    func testFrom() throws {
        XCTAssertEqual(try request("unprotect", "web1", "--from", "b").from, "b")
        XCTAssertNil(try request("unprotect", "web1").from)
    }

    func testNonsense() {
        for text in ["b:0", "b:1001", "b:x", ":3", "b:1:2"] {
            let outcome = Harness().run("protect", "web1", "--to", "a", "--to", text)
            XCTAssertEqual(outcome.code, 64)
            XCTAssertTrue(outcome.err.contains("Option '--to': '\(text)' is neither HOST nor HOST:N"), outcome.err)
        }
        XCTAssertEqual(Harness().run("unprotect", "web1", "--from", "b", "--from", "c").code, 64, "one at a time")
    }
}
