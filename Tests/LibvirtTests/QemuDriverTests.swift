import XCTest
@testable import Libvirt

/// The real driver: one private libvirtd for all tests here, a guest of its own each.
final class QemuDriverTests: XCTestCase {
    nonisolated(unsafe) private static var daemon: Result<PrivateDaemon, any Error>?
    private var daemon: PrivateDaemon!
    private var connection: Connection!
    private var domain: Domain!

    override class func setUp() {
        daemon = Result { try PrivateDaemon() }
        if case .success(let daemon)? = daemon { daemon.start() }
    }

    override class func tearDown() {
        if case .success(let daemon)? = daemon { daemon.remove() }
        daemon = nil
    }

    override func setUpWithError() throws {
        daemon = try Self.daemon?.get()
        connection = try daemon.connect()
        let name = String(UUID().uuidString.prefix(8))
        domain = try connection.create(xml: daemon.guestXML(name: name, disk: daemon.makeDisk("\(name).img")), flags: [.paused])
    }

    override func tearDown() {
        try? domain?.destroy()
        connection?.close()
    }

    func testHostFacts() throws {
        XCTAssertEqual(try connection.type(), "QEMU")
        XCTAssertGreaterThan(try connection.hypervisorVersion(), Version(4, 0))
        XCTAssertGreaterThan(try connection.nodeInfo().memoryKiB, 0)
        XCTAssertTrue(try connection.isSecure())
        XCTAssertFalse(try connection.isEncrypted())
        let capabilities = try connection.domainCapabilitiesXML(arch: "x86_64", machine: "pc", type: "qemu")
        XCTAssertTrue(capabilities.contains("<domain>qemu</domain>"))
        let cpu = "<cpu mode='custom' match='exact'><model>qemu64</model></cpu>"
        let comparison = try connection.compareHypervisorCPU(xml: cpu, arch: "x86_64", machine: "pc", type: "qemu")
        XCTAssertTrue(comparison.isKnown)
        let common = try connection.baselineHypervisorCPU(
            ["<cpu><model>qemu64</model></cpu>", "<cpu><model>Nehalem</model></cpu>"], arch: "x86_64", machine: "pc", type: "qemu")
        XCTAssertTrue(common.contains("<cpu"), common)
    }

    func testMonitorCommands() throws {
        // Never run so far.
        XCTAssertEqual(try domain.monitor(QueryStatus()), QueryStatus.Answer(running: false, status: "prelaunch"))
        try domain.resume()
        XCTAssertEqual(try domain.monitor(QueryStatus()).status, "running")
        XCTAssertEqual(try domain.monitor(QueryVersion()).version, try connection.hypervisorVersion())
        XCTAssertEqual(try domain.monitor(QueryCPUsFast()).map(\.index), [0])
        XCTAssertEqual(try domain.monitor(QueryMemorySizeSummary()).baseMemory, 32 << 20)
        XCTAssertNil(try domain.monitor(QueryMigrate()).status)
        _ = try domain.monitor(Stop())
        XCTAssertTrue(try eventually { try domain.state().state == .paused })
        _ = try domain.monitor(Cont())
        XCTAssertTrue(try eventually { try domain.state().state == .running })
        XCTAssertTrue(try domain.monitorHuman("info status").contains("running"))
        XCTAssertEqual(try domain.monitor(name: "query-status")["status"], .string("running"))
    }

    func testMigrationSettings() throws {
        _ = try domain.monitor(MigrateSetParameters(checkpointDelayMilliseconds: 123, maxBandwidth: 1 << 40))
        let parameters = try domain.monitor(QueryMigrateParameters())
        XCTAssertEqual(parameters["x-checkpoint-delay"], .integer(123))
        XCTAssertEqual(parameters["max-bandwidth"], .integer(1 << 40))
        _ = try domain.monitor(MigrateSetCapabilities(["background-snapshot": true]))
        let capabilities = try domain.monitor(QueryMigrateCapabilities())
        XCTAssertTrue(capabilities.contains(MigrationCapability("background-snapshot", true)))
        _ = try domain.monitor(MigrateSetCapabilities(["background-snapshot": false]))
        XCTAssertEqual(try domain.monitor(QueryColoStatus()).mode, "none")
    }

    func testMonitorErrors() throws {
        struct Nonesuch: MonitorCommand {
            static let name = "nonesuch"
            typealias Answer = EmptyAnswer
        }
        XCTAssertThrowsError(try domain.monitor(Nonesuch())) { XCTAssertEqual(($0 as? MonitorError)?.isCommandNotFound, true) }
        XCTAssertThrowsError(try domain.monitor(ColoLostHeartbeat())) { error in
            XCTAssertEqual((error as? MonitorError)?.command, "x-colo-lost-heartbeat")
        }
        XCTAssertNotNil(libvirtError { _ = try domain.monitorJSON("no json") })
        try domain.destroy()
        XCTAssertNotNil(libvirtError { _ = try domain.monitorJSON("{}") })
    }

    func testFileDescriptorsGoToTheMonitor() throws {
        let pipe = Pipe()
        let reply = try domain.monitorJSON(#"{"execute":"getfd","arguments":{"fdname":"test"}}"#,
                                           files: [pipe.fileHandleForWriting.fileDescriptor])
        XCTAssertTrue(reply.contains("return"), reply)
        XCTAssertNotNil(try domain.monitor(name: "closefd", arguments: ["fdname": .string("test")]))
    }

    func testMonitorEvents() throws {
        let (all, stops, others) = (Recorder<MonitorEvent>(), Recorder<MonitorEvent>(), Recorder<MonitorEvent>())
        let other = try connection.create(xml: daemon.guestXML(name: "other"), flags: [.paused])
        defer { try? other.destroy() }
        let before = monotonicNanoseconds()
        let subscriptions = [
            // Two without a name: libvirt's client would lose the second one's events.
            try connection.onMonitorEvent(domain: other) { others.append($0) },
            try connection.onMonitorEvent(domain: domain) { all.append($0) },
            try connection.onMonitorEvent(domain: domain, event: "STOP") { stops.append($0) },
        ]
        try domain.resume()
        try domain.suspend()
        let resume = try XCTUnwrap(all.first { $0.name == "RESUME" })
        XCTAssertNotNil(all.first { $0.name == "STOP" })
        let stop = try XCTUnwrap(stops.first { _ in true })
        XCTAssertEqual(stops.all.map(\.name), ["STOP"])
        XCTAssertEqual(stop.domainUUID, domain.uuid)
        XCTAssertEqual(stop.domainName, domain.name)
        XCTAssertEqual(Double(resume.seconds), Date().timeIntervalSince1970, accuracy: 60)
        XCTAssertLessThan(resume.microseconds, 1_000_000)
        XCTAssertTrue((before...monotonicNanoseconds()).contains(resume.receivedNanoseconds))
        try other.resume()
        XCTAssertNotNil(others.first { $0.name == "RESUME" && $0.domainUUID == other.uuid })
        XCTAssertFalse(others.all.contains { $0.domainUUID == domain.uuid })
        subscriptions.forEach { $0.cancel() }
    }

    func testMonitorEventsByRegularExpression() async throws {
        let stream = try connection.monitorEvents(domain: domain, event: "^(stop|shutdown)$", filter: [.regex, .ignoringCase])
        try domain.resume()
        try domain.suspend()
        for await event in stream {
            XCTAssertEqual(event.name, "STOP")
            break
        }
    }

    func testLifecycleOfAGuestThatDies() throws {
        let events = Recorder<LifecycleEvent>()
        let subscription = try connection.onLifecycle(domain: domain) { events.append($0) }
        try domain.resume()
        daemon.killGuest(domain.name)
        let stopped = events.first { if case .stopped = $0.event { true } else { false } }
        XCTAssertEqual(stopped?.event, .stopped(.failed))
        XCTAssertEqual(events.all.first?.event, .resumed(.unpaused))
        XCTAssertTrue(eventually { (try? domain.state()) == nil })
        XCTAssertEqual(libvirtError { _ = try domain.state() }?.isNoDomain, true)
        subscription.cancel()
    }

    func testMirrorOfADisk() throws {
        let events = Recorder<BlockJobEvent>()
        let subscription = try connection.onBlockJob(domain: domain) { events.append($0) }
        XCTAssertNil(try domain.blockJobInfo(disk: "vda"))
        XCTAssertEqual(try domain.blockInfo(disk: "vda").capacity, 1 << 20)
        let target = try daemon.makeDisk("\(domain.name).copy")
        try domain.blockCopy(disk: "vda", destinationXML: "<disk type='file'><source file='\(target)'/><driver type='raw'/></disk>",
                             parameters: ["granularity": .uint(65_536)], flags: [.reuseExternal, .transientJob, .synchronousWrites])
        let ready = try XCTUnwrap(events.first { $0.status == .ready })
        XCTAssertEqual(ready.disk, "vda")
        XCTAssertEqual(ready.type, .copy)
        XCTAssertEqual(ready.domainUUID, domain.uuid)
        let info = try XCTUnwrap(domain.blockJobInfo(disk: "vda"))
        XCTAssertEqual(info.type, .copy)
        XCTAssertEqual(info.current, info.end)
        try domain.setBlockJobSpeed(disk: "vda", bytesPerSecond: 1 << 20)
        XCTAssertEqual(try domain.blockJobInfo(disk: "vda")?.bandwidthBytesPerSecond, 1 << 20)
        try domain.blockJobAbort(disk: "vda")
        XCTAssertNil(try domain.blockJobInfo(disk: "vda"))
        subscription.cancel()
    }

    func testStatisticsAndJobs() throws {
        try domain.resume()
        let statistics = try domain.statistics([.state, .cpu, .balloon, .vcpu, .block, .interface])
        XCTAssertEqual(statistics.domainUUID, domain.uuid)
        XCTAssertEqual(statistics.state, .running)
        XCTAssertEqual(statistics.balloonMaximumKiB, 32 << 10)
        XCTAssertEqual(statistics.blocks.map(\.name), ["vda"])
        XCTAssertEqual(statistics.blocks.first?.capacity, 1 << 20)
        XCTAssertEqual(statistics.blocks.first?.writeBytes, 0)
        XCTAssertEqual(statistics.interfaces, [])
        XCTAssertEqual(statistics.vcpus.map(\.index), [0])
        XCTAssertTrue(try connection.statistics([.state], flags: [.active, .noWait]).contains { $0.domainUUID == domain.uuid })
        let job = try domain.jobInfo()
        XCTAssertEqual(job.type, .none)
        XCTAssertNil(job.dataTotal)
        XCTAssertEqual(libvirtError { try domain.abortJob() }?.isOperationInvalid, true)
        try domain.startDirtyRateCalculation(seconds: 1)
        XCTAssertTrue(try eventually { try domain.statistics([.dirtyRate]).dirtyRateStatus == 2 })
        XCTAssertNotNil(try domain.statistics([.dirtyRate]).dirtyRateMegabytesPerSecond)
    }

    func testDefinitions() throws {
        let persistent = try connection.define(xml: daemon.guestXML(name: "persistent"), flags: [.validate])
        XCTAssertFalse(try persistent.isActive())
        XCTAssertEqual(libvirtError { _ = try persistent.monitorJSON("{}") }?.isOperationInvalid, true)
        XCTAssertTrue(try persistent.xml(flags: [.inactive, .migratable]).contains("<name>persistent</name>"))
        try persistent.start(flags: [.paused])
        XCTAssertEqual(try persistent.state().state, .paused)
        XCTAssertEqual(try connection.domains([.active]).map(\.uuid).sorted(), [domain.uuid, persistent.uuid].sorted())
        try persistent.resume()
        try persistent.reset()
        try persistent.shutdown(flags: [.acpiPowerButton])
        try persistent.undefine(flags: [.managedSave])
        XCTAssertFalse(try persistent.isPersistent())
        try persistent.destroy(flags: [.graceful])
    }

    func testAutodestroy() throws {
        let second = try daemon.connect()
        var guest: Domain? = try second.create(xml: daemon.guestXML(name: "leaves"), flags: [.paused, .autodestroy])
        let uuid = try XCTUnwrap(guest?.uuid)
        XCTAssertNoThrow(try connection.lookup(uuid: uuid))
        // As long as the domain object lives, libvirt keeps the socket.
        guest = nil
        second.close()
        XCTAssertTrue(eventually { (try? connection.lookup(uuid: uuid)) == nil })
    }

    func testStorage() throws {
        let path = "\(daemon.folder)/pool"
        let xml = "<pool type='dir'><name>p</name><target><path>\(path)</path></target></pool>"
        XCTAssertNotNil(libvirtError { _ = try connection.createStoragePool(xml: xml) }, "The folder does not exist")
        let pool = try connection.defineStoragePool(xml: xml)
        try pool.build()
        try pool.start()
        XCTAssertEqual(try connection.storagePool(targetPath: path).uuid, pool.uuid)
        let volumeXML = "<volume><name>r.qcow2</name><capacity>1048576</capacity><target><format type='qcow2'/></target></volume>"
        let volume = try pool.createVolume(xml: volumeXML, flags: [.preallocateMetadata])
        XCTAssertEqual(libvirtError { _ = try pool.createVolume(xml: volumeXML) }?.kind, .storageVolumeExists)
        XCTAssertEqual(try volume.path(), "\(path)/r.qcow2")
        try volume.resize(capacity: 4 << 20)
        XCTAssertEqual(try volume.info().capacity, 4 << 20)
        try volume.resize(capacity: 1 << 20, flags: [.delta])
        XCTAssertEqual(try volume.info().capacity, 5 << 20)
        XCTAssertTrue(FileManager.default.createFile(atPath: "\(path)/found.raw", contents: Data(count: 4096)))
        try pool.refresh()
        XCTAssertEqual(try pool.volumes().map(\.name).sorted(), ["found.raw", "r.qcow2"])
        for volume in try pool.volumes() { try volume.delete() }
        try pool.destroy()
        try pool.undefine()
    }
}
