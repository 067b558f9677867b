import CLinux
import Configuration
import ControlProtocol
import Foundation
import Glibc
import Health
import Libvirt
import Orchestration
import Platform
import Transport

/// The service of one host: libvirt's events in, the control socket and the peers' port open, a registry between them.
public final class Daemon: @unchecked Sendable {
    private let configuration: ServiceConfiguration
    private let libvirt: ReconnectingConnection
    private let registry: Registry
    private let environment: HostEnvironment
    private let health: HealthMonitor
    private var subscriptions: [EventSubscription] = []
    private let stopping = Guarded(false)
    private let isConnected = Guarded(false)

    /// Runs until SIGTERM or SIGINT. Returns the process's exit status.
    public static func run(_ configuration: ServiceConfiguration) -> Int32 {
        // Through the environment, so that the workers inherit it; who set it for one start means it.
        setenv(Log.environmentKey, configuration.logLevel.rawValue, 0)
        do {
            return try Daemon(configuration).serve()
        } catch {
            Log.error("\(error)")
            return 1
        }
    }

    private init(_ configuration: ServiceConfiguration) throws {
        self.configuration = configuration
        let secret = try configuration.loadSecret()
        try configuration.checkListenAllowed(secret: secret)
        guard geteuid() == 0 else {
            throw ControlFailure("shadow-virt serve needs root: it writes into the memory of shadows", advice: "Run it with systemd or sudo")
        }
        libvirt = ReconnectingConnection(configuration.libvirtURI)
        let libvirt = libvirt
        environment = HostEnvironment(configuration: configuration, secretBytes: secret) { try libvirt.connection() }
        registry = Registry(environment: environment)
        health = HealthMonitor(configuration)
    }

    private func serve() throws -> Int32 {
        let signals = blockSignals()
        try FileManager.default.createDirectory(atPath: configuration.runtimeDirectory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o711])
        try environment.records.prepare()
        do { try environment.events.open(folder: configuration.stateDirectory) } catch {
            Log.warning("The journal of events: \(error). Events are kept in memory only; move that file away")
        }
        let control = try ControlSocket.listen(path: configuration.controlSocket, group: try controlGroup())
        let peers = try TCP.listen(Endpoint(address: configuration.listen.host, port: configuration.listen.port))
        watchLibvirt()
        health.start()
        registry.setHealthSource { [health] in health.report }

        let controlServer = ControlServer(registry: registry, configuration: configuration, health: health)
        let peerServer = PeerServer(registry: registry, environment: environment)
        startThread("control-accept") { [control = control.release()] in controlServer.accept(on: control) }
        startThread("peer-accept") { [peers = peers.release()] in peerServer.accept(on: peers) }
        registry.startTelemetry()
        registry.startDrift { [health] in health.report }
        health.onEvents { [registry] in registry.drift?.note($0) }
        MetricsEndpoint.start(configuration, registry) { [isConnected] in isConnected.read { $0 } }
        if libvirt.waitUntilConnected(timeoutSeconds: 5) == nil {
            Log.warning("Libvirt at \(configuration.libvirtURI) does not answer; trying on")
        }
        // Not before libvirt answers: guests that stand still are found through it.
        startThread("resume") { [self] in
            while libvirt.waitUntilConnected(timeoutSeconds: 60) == nil {}
            registry.resume()
            registry.telemetry?.noteProtectionsKnown()
        }
        Watchdog(environment: ProcessInfo.processInfo.environment) { [registry, configuration] limit in
            Watchdog.answers(registry, socket: configuration.controlSocket, until: limit)
        }?.start()
        Notification.ready()
        environment.events.record(kind: .serviceStarted, message: "The service, shadow-virt \(ProductVersion.text), began on \(configuration.hostName)")
        Log.info("shadow-virt \(ProductVersion.text) on \(configuration.hostName): libvirt \(configuration.libvirtURI), peers on \(configuration.listen)")
        waitForSignal(signals)
        Log.info("Stopping: guests run on, protections begin anew with the next start")
        Notification.stopping()
        registry.telemetry?.stop()
        registry.drift?.stop()
        health.stop()
        environment.events.record(kind: .serviceStopping, message: "The service stops; guests run on")
        registry.shutDown()
        environment.events.flush(until: MonotonicTime.now.adding(milliseconds: 1000))
        unlink(configuration.controlSocket)
        return 0
    }

    private func controlGroup() throws -> gid_t? {
        guard let name = configuration.controlSocketGroup else { return nil }
        guard let entry = getgrnam(name) else {
            throw ControlFailure("There is no group \(name)", advice: "Correct control_socket_group in \(configuration.file)")
        }
        return entry.pointee.gr_gid
    }

    // MARK: Libvirt

    private func watchLibvirt() {
        EventLoop.start()
        let registry = registry, isConnected = isConnected
        subscriptions.append(libvirt.onLifecycle { registry.dispatch($0) })
        subscriptions.append(libvirt.onMonitorEvent(event: "STOP|RESUME|MIGRATION|COLO_EXIT|BLOCK_JOB_(COMPLETED|CANCELLED|ERROR)", filter: .regex) { registry.dispatch($0) })
        subscriptions.append(libvirt.onBlockJob { registry.dispatch($0) })
        subscriptions.append(libvirt.onMetadataChange { registry.keeper.note($0) })
        subscriptions.append(libvirt.onChange { change in
            switch change {
            case .connected:
                Log.debug("Libvirt is connected")
                isConnected.change { $0 = true }
                registry.libvirtChanged(isThere: true)
            case .lost(let reason):
                isConnected.change { $0 = false }
                registry.libvirtChanged(isThere: false)
                Log.warning("The connection to libvirt was lost (\(reason)); protections go on")
            default: break
            }
        })
        libvirt.start()
    }

    // MARK: Signals

    private func blockSignals() -> sigset_t {
        var set = sigset_t()
        sigemptyset(&set)
        sigaddset(&set, SIGTERM)
        sigaddset(&set, SIGINT)
        sigaddset(&set, SIGHUP)
        pthread_sigmask(SIG_BLOCK, &set, nil)
        return set
    }

    private func waitForSignal(_ signals: sigset_t) {
        var signals = signals
        while true {
            var number: Int32 = 0
            guard sigwait(&signals, &number) == 0 else { continue }
            if number == SIGHUP {
                Notification.reloading()
                ConfigurationReload.run(environment)
                Notification.reloaded()
                continue
            }
            return
        }
    }
}

/// systemd's notification socket: one datagram a message, nothing without `NOTIFY_SOCKET`.
enum Notification {
    static func ready() { send("READY=1\nSTATUS=Serving") }
    static func stopping() { send("STOPPING=1") }

    static func send(_ message: String) {
        guard var path = ProcessInfo.processInfo.environment["NOTIFY_SOCKET"], !path.isEmpty else { return }
        // An abstract socket is written with @ and addressed with a zero byte.
        if path.hasPrefix("@") { path = "\0" + path.dropFirst() }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let length = socklen_t(MemoryLayout<sa_family_t>.size + bytes.count)
        let socket = Descriptor(owning: Glibc.socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0))
        let text = Array(message.utf8)
        withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { target in
                _ = sendto(socket.raw, text, text.count, Int32(MSG_NOSIGNAL), target, length)
            }
        }
    }
}
