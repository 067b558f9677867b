import XCTest
@testable import Libvirt

/// What happens when the daemon goes: each test kills, stops or restarts a libvirtd of its own.
final class LostConnectionTests: XCTestCase {
    private var daemon: PrivateDaemon!

    override func setUpWithError() throws {
        daemon = try PrivateDaemon()
        daemon.start()
    }

    override func tearDown() { daemon?.remove() }

    func testKilledDaemonIsACloseEvent() async throws {
        let connection = try daemon.connect()
        let reasons = Recorder<CloseReason>()
        let subscription = connection.onClose { reasons.append($0) }
        let lifecycle = try connection.lifecycleEvents()
        daemon.signal("KILL")
        XCTAssertEqual(reasons.first { _ in true }, .endOfFile)
        XCTAssertFalse(connection.isAlive)
        let error = libvirtError { _ = try connection.hostname() }
        XCTAssertEqual(error?.isConnectionLost, true, "\(error as Any)")
        for await _ in lifecycle { XCTFail("Nothing happened") }
        connection.close()
        XCTAssertEqual(reasons.all, [.endOfFile])
        subscription.cancel()
    }

    /// A daemon that hangs: the call that waits fails, and the connection counts as lost.
    func testHangingDaemonIsNoticedByKeepalive() throws {
        let connection = try daemon.connect(keepAlive: (1, 2))
        let reasons = Recorder<CloseReason>()
        let subscription = connection.onClose { reasons.append($0) }
        daemon.signal("STOP")
        let error = libvirtError { _ = try connection.hostname() }
        XCTAssertEqual(error?.isConnectionLost, true, "\(error as Any)")
        XCTAssertEqual(reasons.first { _ in true }, .keepAlive)
        daemon.signal("CONT")
        connection.close()
        subscription.cancel()
    }

    func testReconnects() throws {
        let connection = ReconnectingConnection(daemon.uri)
        let changes = Recorder<String>()
        let events = Recorder<LifecycleEvent>()
        let stops = Recorder<MonitorEvent>()
        let observer = connection.onChange { change in
            switch change {
            case .connected: changes.append("connected")
            case .lost(let reason): changes.append("lost: \(reason)")
            case .failed(let error): changes.append("failed: \(error.isConnectionLost)")
            }
        }
        let lifecycle = connection.onLifecycle { events.append($0) }
        connection.start()
        connection.start()
        let first = try XCTUnwrap(connection.waitUntilConnected(timeoutSeconds: 20))
        let domain = try first.create(xml: daemon.guestXML(name: "survivor"))
        XCTAssertNotNil(events.first { $0.event == .started(.booted) })
        // Registered while connected, and for one domain.
        let monitor = connection.onMonitorEvent(domainUUID: domain.uuid, event: "STOP") { stops.append($0) }
        try domain.suspend()
        XCTAssertNotNil(stops.first { _ in true })

        daemon.signal("KILL")
        XCTAssertNotNil(changes.first { $0 == "lost: end of file" })
        XCTAssertNil(connection.current)
        XCTAssertEqual(libvirtError { _ = try connection.connection() }?.isConnectionLost, true)
        XCTAssertNotNil(changes.first { $0 == "failed: true" })
        daemon.start()
        let second = try XCTUnwrap(connection.waitUntilConnected(timeoutSeconds: 20))
        XCTAssertFalse(first === second)

        // The guest outlived its daemon, and the subscriptions the connection.
        let again = try second.lookup(uuid: domain.uuid)
        let before = (events.all.count, stops.all.count)
        try again.resume()
        try again.suspend()
        XCTAssertTrue(eventually { events.all.count == before.0 + 2 && stops.all.count == before.1 + 1 })
        XCTAssertEqual(events.all.last?.event, .suspended(.paused))

        lifecycle.cancel()
        try again.destroy()
        connection.stop()
        XCTAssertNil(connection.current)
        XCTAssertFalse(second.isAlive)
        XCTAssertEqual(changes.all.filter { $0 == "connected" }.count, 2)
        XCTAssertLessThanOrEqual(events.all.count, before.0 + 2)
        observer.cancel()
        monitor.cancel()
    }

    func testStreamOfChangesBeginsWithWhatIs() async throws {
        let connection = ReconnectingConnection(daemon.uri)
        connection.start()
        XCTAssertNotNil(connection.waitUntilConnected(timeoutSeconds: 20))
        for await change in connection.changes {
            guard case .connected(let current) = change else { return XCTFail("\(change)") }
            XCTAssertTrue(current === connection.current)
            break
        }
        connection.stop()
    }

    func testDaemonThatComesLater() throws {
        daemon.signal("KILL")
        let connection = ReconnectingConnection(daemon.uri)
        connection.start()
        XCTAssertNil(connection.waitUntilConnected(timeoutSeconds: 0.5))
        daemon.start()
        XCTAssertNotNil(connection.waitUntilConnected(timeoutSeconds: 20))
        connection.stop()
        XCTAssertNil(connection.waitUntilConnected(timeoutSeconds: 1))
    }
}
