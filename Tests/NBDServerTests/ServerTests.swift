import Foundation
import NBDServer
import Platform
import XCTest

final class ServerTests: XCTestCase {
    private let events = Guarded<[String]>([])

    private func server(_ folder: Folder, _ exports: [any NBDExport], limits: NBDLimits = NBDLimits()) throws -> NBDServer {
        let events = self.events
        let server = try NBDServer(path: folder("s"), mode: 0o600, exports: exports, limits: limits) { event in
            events.change { $0.append(Self.name(event)) }
        }
        server.start()
        return server
    }

    private static func name(_ event: NBDServerEvent) -> String {
        func reason(_ error: NBDProtocolError?) -> String { error.map { ": \($0)" } ?? "" }
        switch event {
        case .connected(let id, let export): return "connected \(id.slot) \(id.serial) \(export)"
        case .disconnected(let id, let export, let error): return "disconnected \(id.slot) \(export)\(reason(error))"
        case .turnedAway(let id, let error): return "turned away \(id.slot)\(reason(error))"
        case .tooManyConnections: return "too many"
        case .cannotAccept(let error): return "cannot accept: \(error)"
        }
    }

    private func awaitEvents(_ expected: [String], file: StaticString = #filePath, line: UInt = #line) {
        _ = events.wait(until: .now.adding(milliseconds: 5000)) { $0.count >= expected.count ? true : nil }
        XCTAssertEqual(events.read { $0 }, expected, file: file, line: line)
    }

    func testLifeOfASocket() throws {
        let folder = try Folder()
        let before = try openDescriptors()
        let server = try server(folder, [MemoryExport()])
        var status = stat()
        XCTAssertEqual(stat(folder("s"), &status), 0)
        XCTAssertEqual(status.st_mode & 0o777, 0o600)
        let client = try TestClient(folder("s"))
        try client.open("disk")
        awaitEvents(["connected 0 1 disk"])
        XCTAssertEqual(server.connectionCount, 1)
        server.stop()
        XCTAssertTrue(client.isClosed())
        awaitEvents(["connected 0 1 disk", "disconnected 0 disk"])
        XCTAssertEqual(server.connectionCount, 0)
        XCTAssertNotEqual(access(folder("s"), F_OK), 0)
        server.stop()
        withExtendedLifetime(client) {}
        // The listener and the wake-up go with the server.
        XCTAssertLessThanOrEqual(try openDescriptors(), before + 3)
    }

    func testStopLeavesAnotherServersSocketAlone() throws {
        let folder = try Folder()
        let old = try server(folder, [MemoryExport()])
        let new = try server(folder, [MemoryExport("new")])
        old.stop()
        try TestClient(folder("s")).open("new")
        new.stop()
    }

    func testOwner() throws {
        try XCTSkipUnless(geteuid() == 0, "needs root, to give a socket away")
        let folder = try Folder()
        let server = try NBDServer(path: folder("s"), mode: 0o660, owner: (1, 2), exports: [])
        var status = stat()
        XCTAssertEqual(stat(folder("s"), &status), 0)
        XCTAssertEqual([status.st_uid, status.st_gid, status.st_mode & 0o777], [1, 2, 0o660])
        server.stop()
    }

    func testSixteenConnections() throws {
        let folder = try Folder()
        let export = MemoryExport()
        export.allowsSeveralConnections = true
        let server = try server(folder, [export])
        defer { server.stop() }
        var clients: [TestClient] = []
        for _ in 0..<16 {
            let client = try TestClient(folder("s"))
            try client.open("disk")
            clients.append(client)
        }
        XCTAssertEqual(server.connectionCount, 16)
        XCTAssertTrue(try TestClient(folder("s")).isClosed())
        XCTAssertNotNil(events.wait(until: .now.adding(milliseconds: 2000)) { $0.contains("too many") ? true : nil })
        try clients[3].send(Session.disconnect)
        XCTAssertTrue(clients[3].isClosed())
        let next = try TestClient(folder("s"))
        try next.open("disk")
        XCTAssertNotNil(events.wait(until: .now.adding(milliseconds: 2000)) { $0.contains("connected 3 17 disk") ? true : nil })
    }

    func testOneClientAtATime() throws {
        let folder = try Folder()
        let server = try server(folder, [MemoryExport()])
        defer { server.stop() }
        let first = try TestClient(folder("s"))
        try first.open("disk")
        let second = try TestClient(folder("s"))
        _ = try second.receive(18)
        try second.send(hex("00000003") + Session.option(7, Session.name("disk") + hex("0000")))
        let message = "Another client has export 'disk'"
        XCTAssertEqual(try second.receive(20 + message.utf8.count),
                       hex("0003e889045565a9", "00000007", "80000002") + UInt32(message.utf8.count).big + text(message))
        let third = try TestClient(folder("s"))
        _ = try third.receive(18)
        try third.send(Session.simple())
        XCTAssertTrue(third.isClosed())
        try first.send(Session.disconnect)
        XCTAssertTrue(first.isClosed())
        // The same connection may ask again.
        try second.send(Session.option(7, Session.name("disk") + hex("0000")))
        XCTAssertEqual(Array(try second.receive(20).prefix(16)), hex("0003e889045565a9", "00000007", "00000003"))
    }

    func testStalls() throws {
        let folder = try Folder()
        var limits = NBDLimits()
        limits.handshakeSeconds = 0.3
        limits.transferSeconds = 0.3
        let export = MemoryExport()
        let server = try server(folder, [export], limits: limits)
        defer { server.stop() }
        let silent = try TestClient(folder("s"))
        XCTAssertTrue(silent.isClosed(seconds: 3))
        awaitEvents(["turned away 0: Timed out during the handshake, at byte 0"])

        let idle = try TestClient(folder("s"))
        try idle.open("disk")
        XCTAssertFalse(idle.isClosed(seconds: 0.8), "idle is fine")
        try idle.send(Session.request(1, length: 4096) + [1, 2, 3])
        XCTAssertTrue(idle.isClosed(seconds: 3))
        awaitEvents(["turned away 0: Timed out during the handshake, at byte 0", "connected 0 2 disk",
                     "disconnected 0 disk: Timed out during the payload of a WRITE, at byte 55"])
        XCTAssertEqual(export.calls, ["abandon"])
        XCTAssertTrue(export.isBalanced)

        let half = try TestClient(folder("s"))
        try half.open("disk")
        try half.send([0x25, 0x60])
        XCTAssertTrue(half.isClosed(seconds: 3))
    }

    func testAClientThatDoesNotTakeItsReplies() throws {
        let folder = try Folder()
        var limits = NBDLimits()
        limits.transferSeconds = 0.3
        let server = try server(folder, [MemoryExport(bytes: 1 << 20)], limits: limits)
        defer { server.stop() }
        let client = try TestClient(folder("s"))
        try client.open("disk")
        for _ in 0..<10 { try client.send(Session.request(0, length: 1 << 20)) }
        _ = events.wait(until: .now.adding(milliseconds: 5000)) { $0.count == 2 ? true : nil }
        XCTAssertTrue(events.read { $0.last ?? "" }.hasPrefix("disconnected 0 disk: Timed out during sending replies"))
    }

    /// What an export waits for may depend on the client's next step, which depends on these replies.
    func testRepliesGoOutBeforeTheExportBlocks() throws {
        let folder = try Folder()
        let export = MemoryExport()
        export.takesAtOnce = false
        let gate = DispatchSemaphore(value: 0)
        gate.signal()
        export.gate = gate
        let server = try server(folder, [export])
        let client = try TestClient(folder("s"))
        try client.open("disk")
        let write = Session.request(1, length: 4) + [1, 2, 3, 4]
        try client.send(write + write)
        _ = try client.receive(16)
        XCTAssertFalse(try client.hears(seconds: 0.2), "the second write waits")
        gate.signal()
        _ = try client.receive(16)
        server.stop()
        XCTAssertTrue(export.isBalanced)
    }

    func testStopInTheMiddleOfTraffic() throws {
        for _ in 0..<10 {
            let folder = try Folder()
            let export = MemoryExport(bytes: 1 << 20)
            let server = try server(folder, [export])
            let client = try TestClient(folder("s"))
            try client.open("disk")
            let sending = Guarded(true)
            Thread.detachNewThread {
                let write = Session.request(1, length: 65536) + [UInt8](repeating: 1, count: 65536)
                while (try? client.send(write)) != nil { _ = try? client.receive(16) }
                sending.change { $0 = false }
            }
            usleep(20_000)
            server.stop()
            XCTAssertNotNil(sending.wait(until: .now.adding(milliseconds: 5000)) { $0 ? nil : true })
            XCTAssertTrue(export.isBalanced)
            XCTAssertEqual(server.connectionCount, 0)
        }
    }
}
