import XCTest
@testable import Libvirt

final class ConnectionTests: XCTestCase {
    func testFactsOfTheTestDriver() throws {
        let connection = try Connection.open("test:///default")
        defer { connection.close() }
        XCTAssertTrue(connection.isAlive)
        XCTAssertEqual(try connection.uri(), "test:///default")
        XCTAssertEqual(try connection.type(), "TEST")
        XCTAssertFalse(try connection.hostname().isEmpty)
        XCTAssertEqual(try connection.libvirtVersion(), try Connection.clientVersion())
        XCTAssertGreaterThanOrEqual(try connection.libvirtVersion(), Version(8, 0))
        XCTAssertEqual(try connection.hypervisorVersion(), Version(0, 0, 2))
        XCTAssertTrue(try connection.capabilitiesXML().contains("<capabilities>"))
        let node = try connection.nodeInfo()
        XCTAssertEqual(node.model, "i686")
        XCTAssertEqual(node.memoryKiB, 3_145_728)
        XCTAssertEqual(node.cpus, 16)
        XCTAssertGreaterThan(try connection.freeMemory(), 0)
        XCTAssertTrue(try connection.isSecure())
    }

    func testVersions() {
        XCTAssertEqual(Version(number: 9_000_000).description, "9.0.0")
        XCTAssertEqual(Version(number: 11_003_002), Version(11, 3, 2))
        XCTAssertLessThan(Version(9, 10), Version(10, 0))
    }

    func testUnknownUriIsAnError() {
        let error = libvirtError { _ = try Connection.open("nonesuch:///") }
        XCTAssertEqual(error?.call, "virConnectOpen")
        XCTAssertFalse(error?.message.isEmpty ?? true)
        let missing = libvirtError { _ = try Connection.open("qemu+unix:///system?socket=/nonexistent/libvirt-sock") }
        XCTAssertEqual(missing?.isConnectionLost, true, "\(missing as Any)")
    }

    func testDefaultUri() {
        let old = ProcessInfo.processInfo.environment["LIBVIRT_DEFAULT_URI"]
        defer { if let old { setenv("LIBVIRT_DEFAULT_URI", old, 1) } else { unsetenv("LIBVIRT_DEFAULT_URI") } }
        setenv("LIBVIRT_DEFAULT_URI", "test:///default", 1)
        XCTAssertEqual(Connection.defaultURI, "test:///default")
        unsetenv("LIBVIRT_DEFAULT_URI")
        XCTAssertEqual(Connection.defaultURI, "qemu:///system")
    }

    func testReadOnlyConnectionRefusesChanges() throws {
        let connection = try Connection.open("test:///default", readOnly: true)
        defer { connection.close() }
        let error = libvirtError { try connection.define(xml: testDomainXML(name: "read-only")) }
        XCTAssertEqual(error?.kind, .operationDenied)
    }

    func testClosedConnection() throws {
        let connection = try Connection.open("test:///default")
        let reasons = Recorder<CloseReason>()
        let subscription = connection.onClose { reasons.append($0) }
        connection.close()
        connection.close()
        XCTAssertEqual(reasons.all, [.client])
        XCTAssertFalse(connection.isAlive)
        let error = libvirtError { _ = try connection.hostname() }
        XCTAssertEqual(error?.kind, .invalidConnection)
        XCTAssertEqual(error?.isConnectionLost, true)
        XCTAssertEqual(error?.call, "virConnectGetHostname")
        _ = libvirtError { _ = try connection.onLifecycle { _ in } }
        // Too late to be told later: told at once.
        let late = connection.onClose { reasons.append($0) }
        XCTAssertEqual(reasons.all, [.client, .client])
        subscription.cancel()
        late.cancel()
    }

    func testCloseEndsStreams() async throws {
        let connection = try Connection.open("test:///default")
        let lifecycle = try connection.lifecycleEvents()
        let closing = connection.closeEvents
        connection.close()
        for await _ in lifecycle { XCTFail("Nothing happened") }
        var reasons: [CloseReason] = []
        for await reason in closing { reasons.append(reason) }
        XCTAssertEqual(reasons, [.client])
    }

    func testDroppedConnectionEndsStreams() async throws {
        var connection: Connection? = try Connection.open("test:///default")
        let lifecycle = try XCTUnwrap(connection?.lifecycleEvents())
        let current = { [weak connection] in connection }
        connection = nil
        for await _ in lifecycle { XCTFail("Nothing happened") }
        XCTAssertNil(current())
    }

    /// Calls, registrations and the close run against each other; the sanitizers' food.
    func testClosingWhileInUse() throws {
        for _ in 0..<20 {
            let connection = try Connection.open("test:///default")
            DispatchQueue.concurrentPerform(iterations: 4) { index in
                if index == 3 { return connection.close() }
                for _ in 0..<20 {
                    _ = try? connection.hostname()
                    (try? connection.onLifecycle { _ in })?.cancel()
                }
            }
            XCTAssertFalse(connection.isAlive)
        }
    }

    /// A failing call's error belongs to its thread.
    func testErrorsOfManyThreads() throws {
        let connection = try Connection.open("test:///default")
        defer { connection.close() }
        DispatchQueue.concurrentPerform(iterations: 8) { index in
            for round in 0..<50 {
                let name = "absent-\(index)-\(round)"
                let error = libvirtError { _ = try connection.lookup(name: name) }
                XCTAssertEqual(error?.isNoDomain, true)
            }
        }
    }
}
