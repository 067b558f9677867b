import Foundation
import Glibc
import Platform

/// Answers `GET /metrics`, one request a connection, a thread each. Nothing that a client does or leaves undone takes more than a few seconds and
/// kilobytes, and none of it waits for libvirt or a guest.
public final class MetricsServer: Sendable {
    public struct Limits: Sendable {
        /// Bytes of a request's head, milliseconds until it is there, until the answer is taken.
        public var headBytes = 8192
        public var headMs = 5000.0
        public var answerMs = 5000.0
        /// At a time; the next one is turned away with 503.
        public var clients = 16

        public init() {}
    }

    private struct Answer {
        var status: Int
        var contentType = "text/plain; charset=utf-8"
        var fields: [String] = []
        var body: String
    }

    private let limits: Limits
    private let families: @Sendable () -> [MetricFamily]
    private let clients = Guarded(0)

    /// `families`: what there is to tell now; called on each scrape, must not wait for anything.
    public init(limits: Limits = Limits(), families: @escaping @Sendable () -> [MetricFamily]) {
        self.limits = limits
        self.families = families
    }

    /// Listens at the address and answers until the process ends. While the address cannot be had it says so once and goes on trying: guests are
    /// protected without metrics as well.
    public func run(at endpoint: Endpoint) {
        var isFailing = false
        while true {
            do {
                let listener = try TCP.listen(endpoint)
                Log.info("Metrics at http://\(endpoint)/metrics")
                isFailing = false
                accept(on: listener.raw)
            } catch {
                if !isFailing { Log.warning("No metrics for now, metrics_listen: \(error)") }
                isFailing = true
            }
            usleep(5_000_000)
        }
    }

    /// Answers until accepting fails.
    func accept(on listener: Int32) {
        while true {
            do {
                guard let connection = try acceptConnection(listener, until: nil) else { continue }
                take(connection)
            } catch {
                Log.debug("Metrics: \(error)")
                return
            }
        }
    }

    private func take(_ connection: consuming Descriptor) {
        let isWelcome = clients.change { count in
            guard count < limits.clients else { return false }
            count += 1
            return true
        }
        let raw = connection.release()
        guard isWelcome else {
            // Goes into the empty send buffer; nobody waits for a client that is one too many.
            let bytes = Self.bytes(Answer(status: 503, body: "Too many clients\n"), withBody: true)
            _ = send(raw, bytes, bytes.count, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
            close(raw)
            return
        }
        startThread("metrics") { [self] in
            serve(Descriptor(owning: raw))
            clients.change { $0 -= 1 }
        }
    }

    // MARK: One client

    private func serve(_ connection: consuming Descriptor) {
        let fd = connection.raw
        do {
            var withBody = true
            var answer: Answer
            do {
                guard let head = try readHead(fd) else { return }
                let request = try RequestHead(head)
                withBody = request.method != "HEAD"
                answer = self.answer(request)
            } catch let malformed as RequestHead.Malformed {
                answer = Answer(status: malformed.status, body: "Bad request: \(malformed.reason)\n")
            }
            try writeFully(fd, Self.bytes(answer, withBody: withBody), deadline: MonotonicTime.now.adding(milliseconds: limits.answerMs), during: "an answer")
            try linger(fd)
        } catch {
            Log.debug("Metrics: \(error)")
        }
    }

    /// Nil when the client left without a word.
    private func readHead(_ fd: Int32) throws -> [UInt8]? {
        let deadline = MonotonicTime.now.adding(milliseconds: limits.headMs)
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 2048)
        while true {
            // The time for all of it, not for each byte.
            guard deadline > .now, try !wait(fd, for: .readable, until: deadline).isEmpty else { throw RequestHead.Malformed("it did not come in time", status: 408) }
            let n = retryingInterrupts { recv(fd, &chunk, chunk.count, Int32(MSG_DONTWAIT)) }
            if n < 0, errno == EAGAIN { continue }
            guard n >= 0 else { throw SystemError("recv") }
            guard n > 0 else {
                if bytes.isEmpty { return nil }
                throw RequestHead.Malformed("it is cut off")
            }
            let searched = bytes.count
            bytes += chunk[..<n]
            if let end = RequestHead.end(in: bytes, searched: searched), end <= limits.headBytes { return Array(bytes[..<end]) }
            guard bytes.count <= limits.headBytes else { throw RequestHead.Malformed("its head is longer than \(limits.headBytes) bytes", status: 431) }
        }
    }

    private func answer(_ request: RequestHead) -> Answer {
        guard request.method == "GET" || request.method == "HEAD" else {
            return Answer(status: 405, fields: ["Allow: GET, HEAD"], body: "Only GET and HEAD\n")
        }
        switch request.path {
        case "/metrics":
            let format = ExpositionFormat.preferred(accept: request.fields["accept"] ?? "")
            return Answer(status: 200, contentType: format.contentType, body: format.render(families()))
        case "/":
            return Answer(status: 200, body: "shadow-virt: see /metrics\n")
        default:
            return Answer(status: 404, body: "There is /metrics only\n")
        }
    }

    private static func bytes(_ answer: Answer, withBody: Bool) -> [UInt8] {
        let lines = ["HTTP/1.1 \(answer.status) \(reasons[answer.status] ?? "Error")", "Date: \(date)", "Content-Type: \(answer.contentType)",
                     "Content-Length: \(answer.body.utf8.count)", "Cache-Control: no-store", "X-Content-Type-Options: nosniff", "Connection: close"] + answer.fields
        return Array((lines.joined(separator: "\r\n") + "\r\n\r\n" + (withBody ? answer.body : "")).utf8)
    }

    private static let reasons = [200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
                                  431: "Request Header Fields Too Large", 503: "Service Unavailable", 505: "HTTP Version Not Supported"]

    /// RFC 9110, 5.6.7; the process never leaves the C locale.
    private static var date: String {
        var now = time(nil)
        var parts = tm()
        gmtime_r(&now, &parts)
        var text = [CChar](repeating: 0, count: 40)
        let count = strftime(&text, text.count, "%a, %d %b %Y %H:%M:%S GMT", &parts)
        return String(decoding: text[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// What came in and was not read would make the kernel take the answer back (RFC 9112, 9.6): read on for a moment.
    private func linger(_ fd: Int32) throws {
        shutdown(fd, Int32(SHUT_WR))
        let deadline = MonotonicTime.now.adding(milliseconds: 500)
        var chunk = [UInt8](repeating: 0, count: 4096)
        var left = 256 << 10
        while left > 0, deadline > .now, try !wait(fd, for: .readable, until: deadline).isEmpty {
            let n = recv(fd, &chunk, chunk.count, Int32(MSG_DONTWAIT))
            guard n > 0 || n < 0 && errno == EAGAIN else { return }
            left -= max(0, n)
        }
    }
}
