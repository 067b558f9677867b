import XCTest
@testable import Metrics

final class RequestHeadTests: XCTestCase {
    private func parse(_ text: String) throws -> RequestHead { try RequestHead(Array(text.utf8)) }

    func testAsPrometheusAsks() throws {
        let head = try parse("GET /metrics?x=1#y HTTP/1.1\r\nHost: a:16521\r\nAccept:  text/plain \t\r\nACCEPT: */*\r\nEmpty:\r\n\r\n")
        XCTAssertEqual(head.method, "GET")
        XCTAssertEqual(head.path, "/metrics")
        XCTAssertEqual(head.fields, ["host": "a:16521", "accept": "text/plain, */*", "empty": ""])
        XCTAssertEqual(try parse("GET http://a:1/metrics HTTP/1.0\n\n").path, "/metrics")
        XCTAssertEqual(try parse("GET http://a HTTP/1.0\n\n").path, "/")
    }

    func testMalformed() {
        let cases: [(text: String, status: Int)] = [
            ("\r\n\r\n", 400), ("GET\r\n\r\n", 400), ("GET /metrics\r\n\r\n", 400), ("GET  /metrics HTTP/1.1\r\n\r\n", 400), ("GET /a b HTTP/1.1\r\n\r\n", 400),
            ("GET metrics HTTP/1.1\r\n\r\n", 400), ("G(T /metrics HTTP/1.1\r\n\r\n", 400), ("GET /metrics HTTP/2.0\r\n\r\n", 505), ("GET /metrics FTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost\r\n\r\n", 400), ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400), ("GET / HTTP/1.1\r\n: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400), ("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", 400), ("GET /\u{1B}[2J HTTP/1.1\r\n\r\n", 400),
        ]
        for (text, status) in cases {
            XCTAssertThrowsError(try parse(text), text) { XCTAssertEqual(($0 as? RequestHead.Malformed)?.status, status, text) }
        }
    }

    /// The end is found wherever the bytes are cut, and no earlier.
    func testEndByteByByte() {
        for (head, rest) in [("GET / HTTP/1.1\r\nA: b\r\n\r\n", "GET"), ("GET / HTTP/1.1\nA: b\n\n", "\n\n"), ("\r\n\r\n", ""), ("x\n\r\n", "\n")] {
            let bytes = Array((head + rest).utf8), end = head.utf8.count
            for first in 0...bytes.count {
                let part = Array(bytes[..<first])
                XCTAssertEqual(RequestHead.end(in: part), first >= end ? end : nil, "\(head.debugDescription), \(first) bytes")
                // As it is read: in two parts.
                if first < end { XCTAssertEqual(RequestHead.end(in: bytes, searched: first), end, "\(head.debugDescription) after \(first)") }
            }
        }
    }

    func testNoBytesWhateverBringItDown() {
        var random = SystemRandomNumberGenerator()
        let base = Array("GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: text/plain\r\n\r\n".utf8)
        for _ in 0..<3000 {
            var bytes = base
            for _ in 0..<Int.random(in: 1...4, using: &random) { bytes[Int.random(in: 0..<bytes.count, using: &random)] = UInt8.random(in: 0...255, using: &random) }
            bytes.removeLast(Int.random(in: 0..<8, using: &random))
            if let head = try? RequestHead(bytes) { XCTAssertTrue(head.path.hasPrefix("/")) }
        }
    }
}
