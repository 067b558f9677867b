import CLibvirt
import XCTest
@testable import Libvirt

final class EventTests: XCTestCase {
    private var connection: Connection!

    override func setUpWithError() throws { connection = try Connection.open("test:///default") }
    override func tearDown() { connection.close() }

    func testLifecycleOfOneDomain() throws {
        let domain = try connection.define(xml: testDomainXML(name: "events"))
        defer { try? domain.undefine() }
        let events = Recorder<LifecycleEvent>()
        let before = monotonicNanoseconds()
        let subscription = try connection.onLifecycle(domain: domain) { events.append($0) }
        let other = try connection.create(xml: testDomainXML(name: "somebody else"))
        defer { try? other.destroy() }
        try domain.start()
        try domain.suspend()
        try domain.resume()
        try domain.destroy()
        XCTAssertNotNil(events.first { $0.event == .stopped(.destroyed) })
        XCTAssertEqual(events.all.map(\.event), [.started(.booted), .suspended(.paused), .resumed(.unpaused), .stopped(.destroyed)])
        for event in events.all {
            XCTAssertEqual(event.domainName, "events")
            XCTAssertEqual(event.domainUUID, domain.uuid)
            XCTAssertTrue((before...monotonicNanoseconds()).contains(event.receivedNanoseconds))
        }
        subscription.cancel()
    }

    /// libvirt refuses the same C function twice for the same events; we register once for all.
    func testManyHandlersOfTheSameEvents() throws {
        let recorders = (0..<3).map { _ in Recorder<LifecycleEvent>() }
        let domain = try connection.lookup(name: "test")
        let subscriptions = try recorders.flatMap { recorder in
            [try connection.onLifecycle { if $0.domainName == "test" { recorder.append($0) } },
             try connection.onLifecycle(domain: domain) { recorder.append($0) }]
        }
        XCTAssertEqual(connection.state.withLock { $0.registrations.count }, 2)
        try domain.suspend()
        try domain.resume()
        for recorder in recorders { XCTAssertTrue(eventually { recorder.all.count == 4 }) }
        subscriptions.dropLast(2).forEach { $0.cancel() }
        try domain.suspend()
        try domain.resume()
        XCTAssertTrue(eventually { recorders[2].all.count == 8 })
        XCTAssertEqual(recorders[0].all.count, 4)
        subscriptions.forEach { $0.cancel() }
        // The last one stays: see `untrack`.
        XCTAssertTrue(eventually { self.connection.state.withLock { $0.registrations.count == 1 && $0.registrations.allSatisfy(\.value.hub.isEmpty) } })
    }

    func testCancelledAndDroppedSubscriptionsAreSilent() throws {
        let (first, second, third) = (Recorder<LifecycleEvent>(), Recorder<LifecycleEvent>(), Recorder<LifecycleEvent>())
        let cancelled = try connection.onLifecycle { first.append($0) }
        _ = try connection.onLifecycle { second.append($0) }
        let kept = try connection.onLifecycle { third.append($0) }
        cancelled.cancel()
        cancelled.cancel()
        let domain = try connection.define(xml: testDomainXML(name: "silent"))
        XCTAssertNotNil(third.first { $0.event == .defined(.added) && $0.domainUUID == domain.uuid })
        try domain.undefine()
        XCTAssertNotNil(third.first { $0.event == .undefined(detail: 0) && $0.domainUUID == domain.uuid })
        XCTAssertEqual(first.all.count, 0)
        XCTAssertEqual(second.all.count, 0)
        kept.cancel()
    }

    func testHandlerMayCancelItself() throws {
        let events = Recorder<LifecycleEvent>()
        let holder = Locked<EventSubscription?>(nil)
        let subscription = try connection.onLifecycle { event in
            XCTAssertTrue(EventLoop.isCurrent)
            events.append(event)
            holder.withLock { $0 }?.cancel()
        }
        holder.withLock { $0 = subscription }
        let domain = try connection.create(xml: testDomainXML(name: "once"))
        XCTAssertNotNil(events.first { _ in true })
        try domain.destroy()
        let all = Recorder<LifecycleEvent>()
        let witness = try connection.onLifecycle { all.append($0) }
        try connection.create(xml: testDomainXML(name: "later")).destroy()
        XCTAssertNotNil(all.first { $0.event == .stopped(.destroyed) && $0.domainName == "later" })
        XCTAssertEqual(events.all.count, 1)
        witness.cancel()
    }

    /// A handler may close: the closing then goes on elsewhere.
    func testHandlerMayCloseTheConnection() throws {
        let connection = try Connection.open("test:///default")
        let reasons = Recorder<CloseReason>()
        let closing = connection.onClose { reasons.append($0) }
        let subscription = try connection.onLifecycle { _ in connection.close() }
        try self.connection.create(xml: testDomainXML(name: "closer")).destroy()
        XCTAssertEqual(reasons.first { _ in true }, .client)
        subscription.cancel()
        closing.cancel()
    }

    /// libvirt frees what was registered; so do we, on every way out.
    func testHandlersAreFreed() throws {
        final class Token: Sendable {}
        func released(_ body: (@escaping @Sendable (LifecycleEvent) -> Void) throws -> Void) rethrows -> Bool {
            weak var watched: Token?
            try {
                let token = Token()
                watched = token
                try body { _ in _ = token }
            }()
            return eventually(within: 5) { watched == nil }
        }
        XCTAssertTrue(try released { try connection.onLifecycle(domain: nil, $0).cancel() })
        XCTAssertTrue(try released { _ = try connection.onLifecycle(domain: nil, $0) })
        let closed = try Connection.open("test:///default")
        closed.close()
        XCTAssertTrue(released { _ = try? closed.onLifecycle(domain: nil, $0) })
        XCTAssertTrue(try released { handler in
            let connection = try Connection.open("test:///default")
            let subscription = try connection.onLifecycle(domain: nil, handler)
            connection.close()
            subscription.cancel()
        })
        // The registration itself fails.
        XCTAssertTrue(released { handler in
            _ = try? connection.onMonitorEvent { _ in handler(LifecycleEvent(domainName: "", domainUUID: "", event: .crashed(detail: 0),
                                                                             receivedNanoseconds: 0)) }
        })
    }

    /// libvirt says of a registration that failed that it does not free it. It does all the same when it hands out events meanwhile, and may call back once more.
    func testRegistrationThatFailsMayBeFreedTwice() throws {
        let events = Recorder<LifecycleEvent>()
        let kept = Locked<UnsafeMutableRawPointer?>(nil)
        let error = libvirtError {
            _ = try connection.subscribe("register", EventSource(id: 4711), remove: virConnectDomainEventDeregisterAny, { events.append($0) }) { _, opaque in
                kept.withLock { $0 = opaque }
                CallbackContext.free(opaque)
                return -1
            }
        }
        XCTAssertEqual(error?.call, "register")
        let opaque = try XCTUnwrap(kept.withLock { $0 })
        CallbackContext.free(opaque)
        EventHub.deliver(LifecycleEvent(domainName: "late", domainUUID: "", event: .crashed(detail: 0), receivedNanoseconds: 0), to: opaque)
        XCTAssertEqual(events.all, [])
    }

    /// libvirt holds the connection for a callback as long as it hands out events: were the last reference there, the event loop would have to close.
    func testClosingWaitsForAHandler() throws {
        let other = try Connection.open("test:///default")
        let begun = Recorder<LifecycleEvent>()
        let subscription = try other.onLifecycle { event in
            begun.append(event)
            usleep(300_000)
        }
        let contexts = other.state.withLock { $0.registrations.values.map(\.context) }
        try connection.create(xml: testDomainXML(name: "slow handler")).destroy()
        XCTAssertNotNil(begun.first { _ in true })
        XCTAssertEqual(contexts.map(\.isHeld), [true])
        other.close()
        XCTAssertEqual(contexts.map(\.isHeld), [false])
        subscription.cancel()
    }

    func testStream() async throws {
        let stream = try connection.lifecycleEvents()
        let domain = try connection.create(xml: testDomainXML(name: "stream"))
        try domain.destroy()
        var seen: [LifecycleEvent.Event] = []
        for await event in stream where event.domainUUID == domain.uuid {
            seen.append(event.event)
            if case .stopped = event.event { break }
        }
        XCTAssertEqual(seen, [.started(.booted), .stopped(.destroyed)])
    }

    func testNumbersOfANewerLibvirt() {
        XCTAssertEqual(LifecycleEvent.Event(kind: 42, detail: 7), .unknown(42, detail: 7))
        XCTAssertEqual(LifecycleEvent.Event(kind: 5, detail: 77), .stopped(StoppedDetail(rawValue: 77)))
        XCTAssertEqual(StoppedDetail(rawValue: 77).description, "77")
        if case .stopped(.failed) = LifecycleEvent.Event(kind: 5, detail: 5) {} else { XCTFail("Patterns must match") }
    }
}
