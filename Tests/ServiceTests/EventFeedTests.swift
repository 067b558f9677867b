import Configuration
import ControlProtocol
import Foundation
import Glibc
import Orchestration
import Platform
import XCTest
@testable import Service

/// `events` over a real control socket: what followers get, and what they cost.
final class EventFeedTests: XCTestCase {
    private let path = "/tmp/shadow-virt-feed-\(UUID().uuidString.prefix(8)).sock"
    private var journal: EventJournal { environment.events }
    private var environment = HostEnvironment(configuration: ServiceConfiguration(environment: [:]), secretBytes: nil) { throw ControlFailure("no libvirt in this test") }
    private var listener: Int32 = -1

    override func setUpWithError() throws {
        environment = HostEnvironment(configuration: ServiceConfiguration(environment: [:]), secretBytes: nil) { throw ControlFailure("no libvirt in this test") }
        listener = try ControlSocket.listen(path: path).release()
        let server = ControlServer(registry: Registry(environment: environment), configuration: ServiceConfiguration(environment: [:]))
        startThread("control-accept") { [listener] in server.accept(on: listener) }
    }

    // The thread that accepts lives as long as the process, as it does in the service.
    override func tearDown() { unlink(path) }

    private func request(_ query: EventQuery, domain: String? = nil) -> ControlRequest {
        var request = ControlRequest(.events, domain: domain)
        request.events = query
        return request
    }

    private func events(_ query: EventQuery, domain: String? = nil) throws -> [ServiceEvent] {
        var all: [ServiceEvent] = []
        try ControlClient(path: path).events(request(query, domain: domain), wake: nil) { all += $0 }
        return all
    }

    /// A follower that has asked and reads when it likes.
    private func follower(_ query: EventQuery = EventQuery(follow: true)) throws -> LineChannel {
        let channel = LineChannel(try ControlSocket.connect(path: path, deadline: .now.adding(milliseconds: 5000)))
        try channel.writeLine(ControlCodec.encode(request(query)), deadline: .now.adding(milliseconds: 5000))
        return channel
    }

    private func next(_ channel: LineChannel) throws -> ControlResponse {
        let line = try XCTUnwrap(try channel.readLine(deadline: .now.adding(milliseconds: 15_000)))
        return try ControlCodec.decode(ControlResponse.self, from: line)
    }

    func testWhatIsKept() throws {
        XCTAssertEqual(try events(EventQuery()), [])
        for number in 1...450 { journal.record(kind: "x", domain: number % 3 == 0 ? "web1" : "db", uuid: number % 3 == 0 ? "ab" : "cd", message: "\(number)") }
        XCTAssertEqual(try events(EventQuery()).map(\.sequence), Array(1...450), "in several parts, none twice")
        XCTAssertEqual(try events(EventQuery(), domain: "web1").count, 150)
        XCTAssertEqual(try events(EventQuery(), domain: "AB").count, 150)
        XCTAssertEqual(try events(EventQuery(), domain: "nobody"), [])
        XCTAssertEqual(try events(EventQuery(after: 448)).map(\.message), ["449", "450"])
        XCTAssertEqual(try events(EventQuery(sinceSeconds: 3600)).count, 450)
        for seconds in [0, -5, 1e300] { XCTAssertNoThrow(try events(EventQuery(sinceSeconds: seconds))) }
        XCTAssertEqual(try events(EventQuery(after: .max)), [])
    }

    func testFollowingGetsTheLastTenAndWhatComes() throws {
        for number in 1...30 { journal.record(kind: "x", message: "\(number)") }
        let channel = try follower()
        XCTAssertEqual(try next(channel).events?.events.map(\.message), (21...30).map { "\($0)" })
        journal.record(kind: .swap, message: "now")
        XCTAssertEqual(try next(channel).events?.events.map(\.message), ["now"])
        // Nothing happens: a sign of life.
        let quiet = try next(channel).events
        XCTAssertEqual(quiet?.events, [])
        XCTAssertEqual(quiet?.isLast, false)
        channel.shutDown()
    }

    /// One that does not read costs the socket's buffer; when it reads again it gets the rest and the number of what it lost.
    func testSlowFollower() throws {
        let channel = try follower(EventQuery(follow: true, after: 0))
        let total = EventJournal.capacity + 2000
        // Recorded faster than anybody reads, and more than the socket and the journal hold together.
        for number in 1...total { journal.record(kind: "x", message: "\(number) " + String(repeating: "m", count: 300)) }
        usleep(300_000)
        for number in total + 1...2 * total { journal.record(kind: "x", message: "\(number) " + String(repeating: "m", count: 300)) }
        var read: [UInt64] = [], lost = 0
        while read.last != UInt64(2 * total) {
            for event in try next(channel).events?.events ?? [] {
                if event.kind == .lost {
                    lost += try XCTUnwrap(event.details?["count"].flatMap { Int($0) })
                    XCTAssertEqual(event.sequence, 0)
                } else {
                    read.append(event.sequence)
                }
            }
        }
        XCTAssertGreaterThan(lost, 1000)
        XCTAssertEqual(read.count + lost, 2 * total, "each was read or is told of as lost")
        XCTAssertEqual(read, read.sorted())
        channel.shutDown()
    }

    func testFollowersAreLimitedAndTheirPlacesComeBack() throws {
        var channels = try (0..<EventFeed.mostFollowers).map { _ in try follower() }
        journal.record(kind: "x", message: "all are there")
        for channel in channels { XCTAssertEqual(try next(channel).events?.events.count, 1) }
        let refused = try next(try follower())
        XCTAssertEqual(refused.failure?.message, "16 clients follow the events already")
        XCTAssertEqual(try events(EventQuery()).count, 1, "who does not follow is served")
        channels.removeLast().shutDown()
        let deadline = MonotonicTime.now.adding(milliseconds: 15_000)
        var answer: ControlResponse?
        repeat {
            usleep(100_000)
            journal.record(kind: "x", message: "wakes them")
            answer = try next(try follower())
        } while answer?.failure != nil && deadline > .now
        XCTAssertNil(answer?.failure)
        channels.forEach { $0.shutDown() }
    }
}
