import Foundation
import Platform
import XCTest
@testable import ControlProtocol

/// A service for one client at a time: reads a request, then does what the test says.
private final class TestService: @unchecked Sendable {
    let path = "/tmp/shadow-virt-\(UUID().uuidString.prefix(8)).sock"
    private let requests = DispatchQueue(label: "requests")
    private var seen: [ControlRequest] = []

    /// `answer` gets the bare descriptor, so that it can misbehave.
    init(_ answer: @escaping @Sendable (Int32) -> Void) throws {
        let listener = try ControlSocket.listen(path: path).release()
        Thread.detachNewThread { [self] in
            let listener = Descriptor(owning: listener)
            guard let client = try? acceptConnection(listener.raw, until: .now.adding(milliseconds: 5000)) else { return }
            let channel = LineChannel(try! client.duplicate())
            guard let line = try? channel.readLine(deadline: .now.adding(milliseconds: 5000)),
                  let request = try? ControlCodec.decode(ControlRequest.self, from: line) else { return }
            requests.sync { seen.append(request) }
            answer(client.raw)
        }
    }

    deinit { unlink(path) }

    var lastRequest: ControlRequest? { requests.sync { seen.last } }
}

private func say(_ text: String, _ descriptor: Int32) {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
        let count = bytes.withUnsafeBytes { send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
        guard count > 0 else { return }
        bytes = bytes.dropFirst(count)
    }
}

private func failure(_ client: ControlClient) -> ControlClientError? {
    do {
        _ = try client.exchange(ControlRequest(.status))
        return nil
    } catch {
        return error
    }
}

final class ControlClientTests: XCTestCase {
    func testProgressThenAnswer() throws {
        let service = try TestService {
            say(#"{"progress":{"message":"Copying","bytes_done":1,"bytes_total":2}}"# + "\n" + #"{"progress":{"mess"#, $0)
            usleep(20_000)
            say(#"age":"Almost"}}"# + "\n" + #"{"done":"web1 is protected"}"# + "\n", $0)
        }
        var messages: [String] = []
        let request = ControlRequest(.protect, domain: "web1", to: "b", intervalMs: 20, withoutDisks: true, wait: true)
        let response = try ControlClient(path: service.path).exchange(request) { messages.append($0.message) }
        XCTAssertEqual(response.done, "web1 is protected")
        XCTAssertEqual(messages, ["Copying", "Almost"])
        XCTAssertEqual(service.lastRequest?.domain, "web1")
        XCTAssertEqual(service.lastRequest?.intervalMs, 20)
    }

    func testARefusalIsAnAnswer() throws {
        let service = try TestService { say(#"{"failure":{"message":"No domain 'x'","advice":"See `virsh list`"}}"# + "\n", $0) }
        XCTAssertEqual(try ControlClient(path: service.path).exchange(ControlRequest(.status)).failure?.description, "No domain 'x'. See `virsh list`")
    }

    func testUnknownKeysAreIgnored() throws {
        let service = try TestService { say(#"{"done":"x","later":[1]}"# + "\n", $0) }
        XCTAssertEqual(try ControlClient(path: service.path).exchange(ControlRequest(.ping)).done, "x")
    }

    func testServiceThatDoesNotRun() throws {
        let path = "/tmp/shadow-virt-none-\(UUID().uuidString).sock"
        XCTAssertEqual(failure(ControlClient(path: path)), .notRunning(path: path))
        XCTAssertEqual("\(ControlClientError.notRunning(path: "/run/x"))",
                       "Cannot reach the service at /run/x: is it running? Start it with `systemctl start shadow-virt`")
        XCTAssertEqual(failure(ControlClient(path: "/dev/null/x")), .notRunning(path: "/dev/null/x"))
        // A socket whose service died.
        do { _ = try ControlSocket.listen(path: path) }
        defer { unlink(path) }
        XCTAssertEqual(failure(ControlClient(path: path)), .notRunning(path: path))
    }

    func testPermissionDenied() throws {
        try XCTSkipUnless(geteuid() == 0, "needs root, to give its rights up")
        let service = try TestService { _ in }
        chown(service.path, uid_t.max, 65534)
        let group = getgrgid(65534).map { String(cString: $0.pointee.gr_name) } ?? "65534"
        chmod(service.path, 0o660)
        let client = ControlClient(path: service.path)
        let result = asUnprivilegedThread { failure(client) }
        XCTAssertEqual(result, .permissionDenied(path: service.path, group: group))
        XCTAssertTrue("\(ControlClientError.permissionDenied(path: "/x", group: "libvirt"))".contains("a member of the group 'libvirt'"))
        XCTAssertTrue("\(ControlClientError.permissionDenied(path: "/x", group: nil))".contains("set control_socket_group"))
    }

    func testBadAnswers() throws {
        let cases: [(String, String)] = [
            ("hello\n", "no JSON object"), ("[]\n", "no JSON object"), ("{}\n", "without any known key"), ("\n", "no JSON object"),
            ("{\"done\":7}\n", "no JSON object"), ("{\"progress\":{}}\n", "no JSON object"), (String(repeating: " ", count: 2000), "longer than 1000 bytes"),
            (String(repeating: "x", count: 2000) + "\n", "longer than 1000 bytes"), ("\u{0}\n", "no JSON object"),
        ]
        for (answer, expected) in cases {
            let service = try TestService { say(answer, $0) }
            guard case .badAnswer(_, let detail)? = failure(ControlClient(path: service.path, ceiling: 1000)) else {
                XCTFail("\(answer.prefix(20).debugDescription) is no bad answer")
                continue
            }
            XCTAssertTrue(detail.contains(expected), detail)
        }
    }

    func testServiceThatGoesAway() throws {
        for part in ["", "{\"done\":", "{\"progress\":{\"message\":\"x\"}}\n", "{\"done\":\"x\"}"] {
            let service = try TestService { say(part, $0) }
            XCTAssertEqual(failure(ControlClient(path: service.path)), .closed(path: service.path), part)
        }
    }

    func testServiceThatHangs() throws {
        let service = try TestService {
            say("{\"progress\":{\"message\":\"x\"}}\n{\"do", $0)
            usleep(600_000)
        }
        let start = MonotonicTime.now
        XCTAssertEqual(failure(ControlClient(path: service.path, silenceLimitMs: 100)), .silent(path: service.path, milliseconds: 100))
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: start), 590)
    }

    func testProgressKeepsTheClientWaiting() throws {
        let service = try TestService {
            for _ in 0..<6 {
                usleep(60_000)
                say("{\"progress\":{\"message\":\"x\"}}\n", $0)
            }
            say("{\"done\":\"x\"}\n", $0)
        }
        // 360 ms of work, never 250 ms of silence.
        XCTAssertEqual(try ControlClient(path: service.path, silenceLimitMs: 250).exchange(ControlRequest(.swap)).done, "x")
    }
}

/// Runs `body` in a thread of its own without root's rights; the kernel keeps them per thread.
private typealias SetID = @convention(c) (UInt32) -> Int32

private func asUnprivilegedThread<T: Sendable>(_ body: @escaping @Sendable () -> T) -> T? {
    nonisolated(unsafe) var result: T?
    let done = DispatchSemaphore(value: 0)
    Thread.detachNewThread {
        // Root's permission to pass over file modes goes with the file system uid; it changes for the calling thread only.
        // Swift's Glibc module does not show them.
        for name in ["setfsgid", "setfsuid"] { _ = dlsym(nil, name).map { unsafeBitCast($0, to: SetID.self)(65533) } }
        result = body()
        done.signal()
    }
    done.wait()
    return result
}

final class ModelTests: XCTestCase {
    /// The keys are what programs rely on: a change here is a change of `schema`.
    func testStatusKeys() throws {
        var domain = DomainStatus(domain: "web1", uuid: "u", role: .primary, peer: "b", engine: "continuous", state: .inDoubt, reason: "",
                                  since: "2024-01-01T00:00:00.000Z", configuredIntervalMs: 20)
        domain.lastCommitAgeMs = 1
        domain.rpoMs = 2
        domain.syncBytesDone = 3
        domain.syncBytesTotal = 4
        let line = String(decoding: try ControlCodec.encode(domain), as: UTF8.self)
        XCTAssertEqual(line, #"{"bytes_dirtied":0,"bytes_sent":0,"committed_epoch":0,"configured_interval_ms":20,"domain":"web1","engine":"continuous","epoch":0,"#
            + #""epochs_per_second":0,"interval_ms":20,"lag_bytes":0,"lag_epochs":0,"last_commit_age_ms":1,"pause_ms_median":0,"pause_ms_p99":0,"peer":"b","#
            + #""reason":"","role":"primary","rpo_ms":2,"since":"2024-01-01T00:00:00.000Z","state":"in_doubt","sync_bytes_done":3,"sync_bytes_total":4,"uuid":"u"}"#)
        XCTAssertEqual(try ControlCodec.encode(ControlCodec.decode(DomainStatus.self, from: Array(line.utf8))), Array(line.utf8))
    }

    func testALineStaysALine() throws {
        let line = try ControlCodec.encode(ControlResponse(done: "two\nlines\r\u{2028}\u{0}/"))
        XCTAssertFalse(line.contains(UInt8(ascii: "\n")))
        XCTAssertEqual(try ControlCodec.decode(ControlResponse.self, from: line).done, "two\nlines\r\u{2028}\u{0}/")
    }

    func testRequests() throws {
        let request = ControlRequest(.failover, domain: "web1", force: true)
        XCTAssertEqual(String(decoding: try ControlCodec.encode(request), as: UTF8.self), #"{"domain":"web1","force":true,"verb":"failover"}"#)
        XCTAssertThrowsError(try ControlCodec.decode(ControlRequest.self, from: Array(#"{"verb":"explode"}"#.utf8)))
    }
}
