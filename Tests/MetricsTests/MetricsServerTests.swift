import Foundation
import Glibc
import Platform
import XCTest
@testable import Metrics

final class MetricsServerTests: XCTestCase {
    private func status(_ answer: String) -> String { String(answer.prefix { $0 != "\r" && $0 != "\r\n" }) }

    func testGetAndHead() throws {
        let server = try RunningServer()
        let got = try server.ask("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        XCTAssertEqual(status(got), "HTTP/1.1 200 OK", got)
        let parts = got.components(separatedBy: "\r\n\r\n")
        XCTAssertEqual(parts.count, 2)
        XCTAssertTrue(parts[0].contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), parts[0])
        XCTAssertTrue(parts[0].contains("Content-Length: \(parts[1].utf8.count)\r\n"), parts[0])
        XCTAssertTrue(parts[0].contains("Connection: close"), parts[0])
        XCTAssertNotNil(parts[0].range(of: #"Date: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"#, options: .regularExpression), parts[0])
        XCTAssertTrue(parts[1].contains("\nshadowvirt_rpo_seconds{domain=\"web1\""), parts[1])

        let head = try server.ask("HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        XCTAssertEqual(status(head), "HTTP/1.1 200 OK")
        XCTAssertTrue(head.hasSuffix("\r\n\r\n"), "a HEAD has no body")
        let open = try server.ask("GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n")
        XCTAssertTrue(open.contains("Content-Type: application/openmetrics-text; version=1.0.0"), open)
        XCTAssertTrue(open.hasSuffix("\n# EOF\n"))
    }

    func testWhatItDoesNotServe() throws {
        let server = try RunningServer()
        let cases: [(request: String, status: String)] = [
            ("GET /other HTTP/1.1\r\n\r\n", "404 Not Found"), ("GET /metrics/../../etc/passwd HTTP/1.1\r\n\r\n", "404 Not Found"), ("GET / HTTP/1.1\r\n\r\n", "200 OK"),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405 Method Not Allowed"), ("DELETE / HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            ("get /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"), ("GET /metrics HTTP/3.0\r\n\r\n", "505 HTTP Version Not Supported"), ("hello\r\n\r\n", "400 Bad Request"),
        ]
        for (request, expected) in cases {
            let answer = try server.ask(request)
            XCTAssertEqual(status(answer), "HTTP/1.1 \(expected)", request)
            if expected.hasPrefix("405") { XCTAssertTrue(answer.contains("\r\nAllow: GET, HEAD\r\n"), answer) }
        }
    }

    func testBinary() throws {
        let server = try RunningServer()
        // What a TLS client sends first, and noise with a line end.
        XCTAssertEqual(status(try server.ask([0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, 0x0A, 0x0A])), "HTTP/1.1 400 Bad Request")
        XCTAssertEqual(status(try server.ask((0...255).map { UInt8($0) } + [0x0A, 0x0A])), "HTTP/1.1 400 Bad Request")
        XCTAssertEqual(status(try server.ask(Array("GET /metrics HT".utf8), thenClose: true)), "HTTP/1.1 400 Bad Request")
        XCTAssertEqual(try server.ask([], thenClose: true), "", "nothing asked, nothing answered")
    }

    /// The answer arrives though most of what was sent is never read.
    func testHugeHeader() throws {
        let server = try RunningServer()
        let fields = String(repeating: "X-Padding: \(String(repeating: "x", count: 1000))\r\n", count: 100)
        XCTAssertEqual(status(try server.ask("GET /metrics HTTP/1.1\r\n\(fields)\r\n")), "HTTP/1.1 431 Request Header Fields Too Large")
        XCTAssertEqual(status(try server.ask("GET /\(String(repeating: "a", count: 9000))")), "HTTP/1.1 431 Request Header Fields Too Large")
        // Just below the limit it is a request like any other.
        let most = "GET /metrics HTTP/1.1\r\nX: "
        let fits = most + String(repeating: "x", count: 8192 - most.utf8.count - 4) + "\r\n\r\n"
        XCTAssertEqual(status(try server.ask(fits)), "HTTP/1.1 200 OK")
    }

    /// A byte now and then does not keep a place.
    func testSlowClient() throws {
        var limits = MetricsServer.Limits()
        limits.headMs = 400
        let server = try RunningServer(limits)
        let begin = MonotonicTime.now
        let connection = try server.connect()
        let raw = try connection.duplicate().release()
        Thread.detachNewThread {
            let copy = Descriptor(owning: raw)
            for byte in "GET /metrics HTTP/1.1\r\n".utf8 {
                var byte = byte
                guard send(copy.raw, &byte, 1, Int32(MSG_NOSIGNAL)) == 1 else { return }
                usleep(50_000)
            }
        }
        XCTAssertEqual(status(try server.answer(connection)), "HTTP/1.1 408 Request Timeout")
        XCTAssertGreaterThanOrEqual(MonotonicTime.now.milliseconds(since: begin), 390)
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: begin), 3000)
    }

    /// Clients that never read their answer hold their own places and nothing else; one too many is told so; afterwards there is room again.
    func testClientsThatDoNotRead() throws {
        var limits = MetricsServer.Limits()
        (limits.clients, limits.answerMs, limits.headMs) = (4, 600, 600)
        let large = [MetricFamily("x", .gauge, "h", (0..<200_000).map { .init(Double($0), labels: [.init("number", "\($0)")]) })]
        let server = try RunningServer(limits) { large }
        var deaf: [Int32] = []
        defer { deaf.forEach { close($0) } }
        let request = Array("GET /metrics HTTP/1.1\r\n\r\n".utf8)
        for _ in 0..<4 {
            let connection = try server.connect()
            _ = send(connection.raw, request, request.count, Int32(MSG_NOSIGNAL))
            deaf.append(connection.release())
        }
        let answer = try server.ask([])
        XCTAssertEqual(status(answer), "HTTP/1.1 503 Service Unavailable")
        let limit = MonotonicTime.now.adding(milliseconds: 15_000)
        var last = ""
        while last != "HTTP/1.1 200 OK", limit > .now {
            last = status((try? server.ask("GET / HTTP/1.1\r\n\r\n")) ?? "")
            if last != "HTTP/1.1 200 OK" { usleep(100_000) }
        }
        XCTAssertEqual(last, "HTTP/1.1 200 OK")
    }

    func testManyAtATime() throws {
        let server = try RunningServer()
        let good = Guarded(0)
        DispatchQueue.concurrentPerform(iterations: 8) { _ in
            for _ in 0..<20 {
                if let answer = try? server.ask("GET /metrics HTTP/1.1\r\n\r\n"), answer.hasPrefix("HTTP/1.1 200"), answer.contains("process_cpu_seconds_total") { good.change { $0 += 1 } }
            }
        }
        XCTAssertEqual(good.read { $0 }, 160)
    }
}
