import Configuration
import ControlProtocol
import Libvirt

/// What libvirt is told to move a guest: `virDomainMigrateToURI3`'s arguments.
struct MigrationCall {
    var uri: String
    var flags: MigrateFlags
    var parameters: TypedParameters

    /// - Parameters:
    ///   - xml: the running guest's, migratable.
    ///   - persistentXML: the stored definition; nil for a transient guest, which stays one.
    ///   - layout: where its disks lie at the target.
    ///   - disks: targets of those that are copied.
    init(to peer: Peer, _ options: MigrationOptions, xml: String, persistentXML: String?, layout: ReplicaLayout, disks: [String]) throws {
        uri = options.uri ?? peer.libvirtURI
        flags = [.live, .peerToPeer, .abortOnError]
        parameters = TypedParameters()
        // The peer's own address: left to itself, libvirt takes what the target calls itself, which this host may not be able to resolve.
        parameters.append(MigrateParameter.uri, .string("tcp://" + Self.bracketed(peer.address.host)))
        parameters.append(MigrateParameter.destinationXML, .string(try Self.rewritten(xml, layout)))
        if let persistentXML {
            flags.formUnion([.persistDestination, .undefineSource])
            parameters.append(MigrateParameter.persistentXML, .string(try Self.rewritten(persistentXML, layout)))
        }
        if !disks.isEmpty {
            flags.insert(.nonSharedDisk)
            for disk in disks { parameters.append(MigrateParameter.migrateDisks, .string(disk)) }
        }
        if let bandwidth = options.bandwidthBytesPerSecond { parameters.append(MigrateParameter.bandwidth, .ulong(max(1, bandwidth >> 20))) }
        if options.autoConverge { flags.insert(.autoConverge) }
        if options.postcopy { flags.insert(.postCopy) }
        if let connections = options.parallel {
            flags.insert(.parallel)
            parameters.append(MigrateParameter.parallelConnections, .int(Int32(clamping: connections)))
        }
        if options.compress {
            flags.insert(.compressed)
            // XBZRLE needs one stream; multifd has methods of its own.
            parameters.append(MigrateParameter.compression, .string(options.parallel == nil ? "xbzrle" : "zstd"))
        }
        if options.tls {
            flags.insert(.tls)
            // The certificate names the host as administrators do, not its address.
            if let host = Self.host(of: uri) { parameters.append(MigrateParameter.tlsDestination, .string(host)) }
        }
    }

    /// Also without the arguments that made a guest that came by a hand-over wait for its state here.
    private static func rewritten(_ xml: String, _ layout: ReplicaLayout) throws -> String { try DomainDefinition(xml: xml).persistentXML(layout) }

    static func bracketed(_ host: String) -> String { host.contains(":") ? "[\(host)]" : host }

    /// `qemu+tls://root@host:16514/system?x` -> `host`
    static func host(of uri: String) -> String? {
        guard let start = uri.range(of: "://")?.upperBound else { return nil }
        var authority = uri[start...].prefix { $0 != "/" && $0 != "?" }
        if let at = authority.lastIndex(of: "@") { authority = authority[authority.index(after: at)...] }
        if authority.hasPrefix("[") { return authority.dropFirst().firstIndex(of: "]").map { String(authority[authority.index(after: authority.startIndex)..<$0]) } }
        let host = authority.prefix { $0 != ":" }
        return host.isEmpty ? nil : String(host)
    }

    /// The way out of an error of libvirt's, by its kind; libvirt's words say what is wrong.
    static func advice(for error: LibvirtError, uri: String, peer: String) -> String {
        switch error.kind {
        case _ where error.isConnectionLost, .systemError, .rpc, .authenticationFailed, .authenticationUnavailable, .unknownHost:
            "Libvirt here has to reach libvirt on \(peer): `virsh -c \(uri) list` as root tries it; see Live migration in the README for what \(peer) has to listen on"
        case .migrateUnsafe:
            "Give the disks that both hosts share cache='none', so that nothing of them is in this host's page cache"
        case .cpuIncompatible:
            "Give the domain a CPU model that both hosts have"
        case .configurationUnsupported, .operationInvalid, .operationUnsupported, .argumentUnsupported, .invalidArgument, .noSupport:
            "Remove what libvirt names (a device of this host, an option that one of the two libvirts lacks), or shut the guest down and move it cold with `virsh migrate --offline`"
        default:
            "`journalctl -u libvirtd` (or virtqemud) on both hosts, and /var/log/libvirt/qemu on \(peer), tell more"
        }
    }
}
