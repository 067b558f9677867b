import ControlProtocol
import Foundation
import Glibc
import Platform

/// What `/etc/shadow-virt/shadow-virt.conf` says, with defaults for what it leaves out.
/// The keys and their meaning are documented in `examples/shadow-virt.conf`, which is the file that ships.
public struct ServiceConfiguration: Sendable, Equatable {
    public static let defaultPath = ConfDocument.servicePath

    public enum LogLevel: String, Sendable, CaseIterable {
        case error, warning, info, debug
    }

    /// The file this came from, for messages; it need not exist.
    public var file = ServiceConfiguration.defaultPath
    /// This host's name as its peers call it.
    public var hostName = HostName.ofThisMachine
    public var libvirtURI = "qemu:///system"
    /// Where peers connect to; always a numeric address.
    public var listen = PeerAddress(host: "127.0.0.1", port: 16520)
    public var controlSocket = ControlSocket.defaultPath
    /// The group that may use the control socket besides root; nil: root only.
    public var controlSocketGroup: String?
    public var runtimeDirectory = "/run/shadow-virt"
    public var stateDirectory = "/var/lib/shadow-virt"
    public var secretFile = "/etc/shadow-virt/secret"
    /// The file names `secret_file`: then it has to exist.
    public var secretFileIsExplicit = false
    public var peers: [Peer] = []
    /// Where this host stands, for the placement of shadows.
    public var labels = HostLabels()
    /// Seconds, 0...604800, after which a shadow that does not follow is replaced by one on another host, where a policy asks for it; 0: never.
    public var replaceAfter = 600
    /// Milliseconds from one epoch to the next, 5...60000, when `protect` says nothing else.
    public var intervalMs = 20
    /// The largest interval, in milliseconds, that back-pressure may go to; at least `intervalMs`.
    public var intervalLimitMs = 1000
    /// Bytes of captured but unsent epochs that a source worker may hold, in MiB, 16...65536.
    public var unsentCeilingMiB = 256
    /// Milliseconds between two signs of life to a peer.
    public var keepaliveMs = 1000
    /// Milliseconds of silence after which a peer counts as unreachable; at least twice `keepaliveMs`.
    public var peerTimeoutMs = 5000
    /// Seconds between two looks at the hosts and guests, 0...3600; 0: none are made.
    public var telemetryInterval = 5
    /// Where the latency of the guests' storage is measured; empty: in the folders of libvirt's active pools and of guests' disks.
    public var probeDirectories: [String] = []
    /// Programs (`journalctl`, `cat`) may be run in guests whose agent offers that.
    public var guestExec = true
    public var logLevel = LogLevel.info
    /// This host's BMC; none is watched by default.
    public var bmc = BMCSettings()
    /// What drift leads to.
    public var drift = DriftSettings()
    /// Where Prometheus finds /metrics, always a numeric address; nil: nowhere. The port is in no range of Prometheus' list of default ports, and beside that of `listen`.
    public var metricsListen: PeerAddress? = PeerAddress(host: "127.0.0.1", port: 16521)

    /// The defaults, with `LIBVIRT_DEFAULT_URI` from `environment`.
    public init(environment: [String: String] = ProcessInfo.processInfo.environment) {
        if let uri = environment["LIBVIRT_DEFAULT_URI"], !uri.isEmpty { libvirtURI = uri }
    }

    public var unsentCeilingBytes: Int { unsentCeilingMiB << 20 }

    /// The peer called `name`, upper and lower case alike.
    public func peer(named name: String) -> Peer? {
        peers.first { HostName.isSame($0.name, name) }
    }

    /// Reads `path`. A missing file means defaults, unless `mustExist` (the user named it).
    public static func load(path: String = defaultPath, mustExist: Bool = false,
                            environment: [String: String] = ProcessInfo.processInfo.environment)
        throws(ConfigurationError) -> ServiceConfiguration {
        guard let bytes = try SmallFile.read(path, ceiling: ConfDocument.sizeCeiling) else {
            if mustExist {
                throw ConfigurationError(file: path, message: "There is no such file", advice: "Check the path after --config")
            }
            var defaults = ServiceConfiguration(environment: environment)
            defaults.file = path
            try defaults.check(positions: [:])
            return defaults
        }
        return try ServiceConfiguration(bytes: bytes, file: path, environment: environment)
    }

    /// Parses and checks the text of a configuration file.
    public init(bytes: [UInt8], file: String, environment: [String: String] = ProcessInfo.processInfo.environment)
        throws(ConfigurationError) {
        self.init(environment: environment)
        self.file = file
        var positions: [String: ConfDocument.Position] = [:]
        for entry in try ConfDocument(bytes: bytes, file: file).entries {
            guard let key = ConfigurationKey.named(entry.name) else { throw ConfigurationKey.unknown(entry, file: file) }
            try key.apply(ConfigurationKey.Input(name: entry.name, value: entry.value, file: file), &self)
            positions[entry.name] = entry.value.position
        }
        try check(positions: positions)
    }

    /// The rules that involve more than one key.
    private func check(positions: [String: ConfDocument.Position]) throws(ConfigurationError) {
        func error(_ keys: String..., message: String, advice: String) -> ConfigurationError {
            ConfigurationError(file: file, position: keys.compactMap { positions[$0] }.first, message: message, advice: advice)
        }
        guard HostName.isValid(hostName) else {
            throw error("host_name", message: "'\(hostName)' does not serve as this host's name",
                        advice: "Set host_name to \(HostName.rule)")
        }
        guard intervalLimitMs >= intervalMs else {
            throw error("interval_limit_ms", "interval_ms",
                        message: "interval_limit_ms (\(intervalLimitMs)) is below interval_ms (\(intervalMs))",
                        advice: "Raise interval_limit_ms or lower interval_ms")
        }
        guard peerTimeoutMs >= 2 * keepaliveMs else {
            throw error("peer_timeout_ms", "keepalive_ms",
                        message: "peer_timeout_ms (\(peerTimeoutMs)) is less than twice keepalive_ms (\(keepaliveMs))",
                        advice: "One lost heart beat would count as a lost peer: set it to \(2 * keepaliveMs) or more")
        }
        try checkBMC { key, message, advice in error(key, message: message, advice: advice) }
        if let peer = peer(named: hostName) {
            throw error("peers", message: "Peer '\(peer.name)' has the name of this host",
                        advice: "List the other hosts only, or set host_name")
        }
        if metricsListen == listen {
            throw error("metrics_listen", "listen", message: "metrics_listen and listen are the same address (\(listen))", advice: "Give one of them another port")
        }
        if let peer = peers.first(where: { $0.address == listen }) {
            throw error("peers", message: "Peer '\(peer.name)' has the address that this host listens on (\(listen))",
                        advice: "List the other hosts only")
        }
    }
}
