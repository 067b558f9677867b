import ControlProtocol

/// One key of the configuration file: how its value is checked and where it goes.
struct ConfigurationKey: Sendable {
    typealias Apply = @Sendable (Input, inout ServiceConfiguration) throws(ConfigurationError) -> Void

    let name: String
    let apply: Apply

    init(_ name: String, _ apply: @escaping Apply) {
        self.name = name
        self.apply = apply
    }

    static func named(_ name: String) -> ConfigurationKey? { all.first { $0.name == name } }

    static func unknown(_ entry: ConfDocument.Entry, file: String) -> ConfigurationError {
        let closest = ClosestName.to(entry.name, among: all.map(\.name))
        return ConfigurationError(file: file, position: entry.position, message: "Unknown key '\(entry.name)'",
                                  advice: closest.map { "Did you mean '\($0)'?" } ?? "The known keys are \(all.map(\.name).joined(separator: ", "))")
    }

    /// In the order of the file that ships.
    static let all: [ConfigurationKey] = [
        ConfigurationKey("host_name") { input, configuration throws(ConfigurationError) in
            let name = try input.string()
            if name.isEmpty { return }
            guard HostName.isValid(name) else { throw input.error("'\(name)' is no host name", advice: "Use \(HostName.rule)") }
            configuration.hostName = name
        },
        ConfigurationKey("libvirt_uri") { input, configuration throws(ConfigurationError) in
            configuration.libvirtURI = try input.libvirtURI(try input.string())
        },
        ConfigurationKey("listen") { input, configuration throws(ConfigurationError) in
            let text = try input.string()
            guard let address = PeerAddress(text), address.isNumeric else {
                throw input.error("'\(text)' is no address to listen on",
                                  advice: "Write a numeric address and a port: \"192.0.2.1:16520\" or \"[2001:db8::1]:16520\"")
            }
            configuration.listen = address
        },
        ConfigurationKey("control_socket") { input, configuration throws(ConfigurationError) in
            // sun_path holds 108 bytes with the closing zero (unix(7)).
            configuration.controlSocket = try input.path(longest: 107)
        },
        ConfigurationKey("control_socket_group") { input, configuration throws(ConfigurationError) in
            let group = try input.string()
            guard group.isEmpty || HostName.isValid(group) else {
                throw input.error("'\(group)' is no group name", advice: "Name a group of this host, or \"\" for root only")
            }
            configuration.controlSocketGroup = group.isEmpty ? nil : group
        },
        ConfigurationKey("runtime_dir") { input, configuration throws(ConfigurationError) in
            configuration.runtimeDirectory = try input.path(longest: 60)
        },
        ConfigurationKey("state_dir") { input, configuration throws(ConfigurationError) in
            configuration.stateDirectory = try input.path()
        },
        ConfigurationKey("secret_file") { input, configuration throws(ConfigurationError) in
            configuration.secretFile = try input.path()
            configuration.secretFileIsExplicit = true
        },
        ConfigurationKey("peers") { input, configuration throws(ConfigurationError) in
            configuration.peers = try input.peers()
        },
        ConfigurationKey("labels") { input, configuration throws(ConfigurationError) in
            let text = try input.string()
            do throws(HostLabels.ParseError) {
                configuration.labels = try HostLabels(text)
            } catch {
                throw input.error(error.message, advice: error.advice)
            }
        },
        ConfigurationKey("shadow_replace_after") { input, configuration throws(ConfigurationError) in
            configuration.replaceAfter = try input.integer(in: 0...604_800)
        },
        ConfigurationKey("interval_ms") { input, configuration throws(ConfigurationError) in
            configuration.intervalMs = try input.integer(in: ServiceConfiguration.intervalRangeMs)
        },
        ConfigurationKey("interval_limit_ms") { input, configuration throws(ConfigurationError) in
            configuration.intervalLimitMs = try input.integer(in: ServiceConfiguration.intervalRangeMs)
        },
        ConfigurationKey("unsent_ceiling_mib") { input, configuration throws(ConfigurationError) in
            configuration.unsentCeilingMiB = try input.integer(in: 16...65536)
        },
        ConfigurationKey("keepalive_ms") { input, configuration throws(ConfigurationError) in
            configuration.keepaliveMs = try input.integer(in: 50...60000)
        },
        ConfigurationKey("peer_timeout_ms") { input, configuration throws(ConfigurationError) in
            configuration.peerTimeoutMs = try input.integer(in: 100...600_000)
        },
        telemetryInterval,
        probeDirectories,
        guestExec,
        ConfigurationKey("log_level") { input, configuration throws(ConfigurationError) in
            let name = try input.string()
            guard let level = ServiceConfiguration.LogLevel(rawValue: name) else {
                throw input.error("'\(name)' is no log level", advice: "Use \"error\", \"warning\", \"info\" or \"debug\"")
            }
            configuration.logLevel = level
        },
        ConfigurationKey("metrics_listen") { input, configuration throws(ConfigurationError) in
            let text = try input.string()
            if text == "off" { return configuration.metricsListen = nil }
            guard let address = PeerAddress(text), address.isNumeric else {
                throw input.error("'\(text)' is no address to listen on", advice: "Write a numeric address and a port, \"127.0.0.1:16521\", or \"off\"")
            }
            configuration.metricsListen = address
        },
    ] + bmc + drift
}

extension ServiceConfiguration {
    /// Below 5 ms nothing is gained: QEMU's checkpoint then costs more than the interval.
    public static let intervalRangeMs = 5...60000

    /// Every key that the file may hold.
    public static var keyNames: [String] { ConfigurationKey.all.map(\.name) }
}

extension ConfigurationKey {
    /// A key's value with its place, and the checks that several keys share.
    struct Input {
        let name: String
        let value: ConfDocument.Value
        let file: String

        func error(_ message: String, at position: ConfDocument.Position? = nil, advice: String) -> ConfigurationError {
            ConfigurationError(file: file, position: position ?? value.position, message: "\(name): \(message)", advice: advice)
        }

        func string() throws(ConfigurationError) -> String { try string(value) }

        func string(_ value: ConfDocument.Value) throws(ConfigurationError) -> String {
            guard case .string(let text) = value.content else {
                throw error("Expected a string", at: value.position, advice: "Put the value in quotes: \(name) = \"...\"")
            }
            guard text.unicodeScalars.allSatisfy({ $0.value >= 0x20 && $0.value != 0x7F }) else {
                throw error("The string holds a control character", at: value.position, advice: "Write it on one line, without tabs")
            }
            return text
        }

        func integer(in range: ClosedRange<Int>) throws(ConfigurationError) -> Int {
            guard case .integer(let number) = value.content else {
                throw error("Expected a whole number", advice: "Write \(name) = NUMBER, from \(range.lowerBound) to \(range.upperBound), without quotes")
            }
            guard let result = Int(exactly: number), range.contains(result) else {
                throw error("\(number) is out of range", advice: "Use \(range.lowerBound) to \(range.upperBound)")
            }
            return result
        }

        func path(longest: Int = 4095) throws(ConfigurationError) -> String {
            let path = try string()
            guard path.hasPrefix("/") else { throw error("'\(path)' is not an absolute path", advice: "Begin it with '/'") }
            guard path.utf8.count <= longest else {
                throw error("The path has \(path.utf8.count) bytes", advice: "Use a path of at most \(longest) bytes")
            }
            return path
        }

        func libvirtURI(_ text: String, at position: ConfDocument.Position? = nil) throws(ConfigurationError) -> String {
            // libvirt itself has the last word; this only catches what can't be one (a host name, a path).
            let scheme = text.prefix { $0 != ":" }
            guard text.hasPrefix("\(scheme)://"), let first = scheme.utf8.first, (0x61...0x7A).contains(first | 0x20), !text.contains(" ") else {
                throw error("'\(text)' is no libvirt URI", at: position,
                            advice: "Write for instance \"qemu:///system\" or \"qemu+ssh://root@HOST/system\"")
            }
            return text
        }

        func peers() throws(ConfigurationError) -> [Peer] {
            guard case .list(let elements) = value.content else {
                throw error("Expected a list of strings", advice: "Write peers = [ \"NAME ADDRESS:PORT LIBVIRT_URI\" ]")
            }
            var peers: [Peer] = []
            for element in elements {
                let peer = try self.peer(element)
                if let other = peers.first(where: { HostName.isSame($0.name, peer.name) }) {
                    throw error("Two peers are called '\(other.name)'", at: element.position, advice: "Give each host one name of its own")
                }
                if let other = peers.first(where: { $0.address == peer.address }) {
                    throw error("Peers '\(other.name)' and '\(peer.name)' have the same address \(peer.address)", at: element.position,
                                advice: "Give each host an address of its own")
                }
                peers.append(peer)
            }
            return peers
        }

        private func peer(_ element: ConfDocument.Value) throws(ConfigurationError) -> Peer {
            let text = try string(element)
            let words = text.split(separator: " ")
            guard words.count == 3 else {
                throw error("Expected three words in '\(text)', found \(words.count)", at: element.position,
                            advice: "Write \"NAME ADDRESS:PORT LIBVIRT_URI\"")
            }
            guard HostName.isValid(words[0]) else {
                throw error("'\(words[0])' is no name for a peer", at: element.position, advice: "Use \(HostName.rule)")
            }
            guard let address = PeerAddress(String(words[1])) else {
                throw error("'\(words[1])' is no address of a peer", at: element.position,
                            advice: "Write ADDRESS:PORT, an IPv6 address in brackets: \"[2001:db8::2]:16520\"")
            }
            return Peer(name: String(words[0]), address: address, libvirtURI: try libvirtURI(String(words[2]), at: element.position))
        }
    }
}
