import Foundation

extension ConfigurationKey {
    /// The keys about this host's BMC, in the order of the file that ships.
    static let bmc: [ConfigurationKey] = [
        ConfigurationKey("bmc_address") { input, configuration throws(ConfigurationError) in
            configuration.bmc.access = try input.bmcAccess()
        },
        ConfigurationKey("bmc_user") { input, configuration throws(ConfigurationError) in
            let user = try input.string()
            guard user.utf8.count <= BMCSettings.longestUser else {
                throw input.error("'\(user)' has \(user.utf8.count) bytes", advice: "IPMI has room for \(BMCSettings.longestUser)")
            }
            configuration.bmc.user = user
        },
        ConfigurationKey("bmc_password_file") { input, configuration throws(ConfigurationError) in
            configuration.bmc.passwordFile = try input.path()
        },
        ConfigurationKey("bmc_privilege") { input, configuration throws(ConfigurationError) in
            configuration.bmc.privilege = try input.choice("privilege level")
        },
        ConfigurationKey("bmc_protocol") { input, configuration throws(ConfigurationError) in
            configuration.bmc.version = try input.choice("version of IPMI")
        },
        ConfigurationKey("bmc_authentication") { input, configuration throws(ConfigurationError) in
            configuration.bmc.authentication = try input.choice("authentication of IPMI 1.5")
        },
        ConfigurationKey("bmc_kg_file") { input, configuration throws(ConfigurationError) in
            configuration.bmc.kgFile = try input.string().isEmpty ? nil : try input.path()
        },
        ConfigurationKey("bmc_driver") { input, configuration throws(ConfigurationError) in
            configuration.bmc.driver = try input.choice("driver for a BMC")
        },
        ConfigurationKey("bmc_driver_device") { input, configuration throws(ConfigurationError) in
            configuration.bmc.device = try input.string().isEmpty ? nil : try input.path()
        },
        ConfigurationKey("bmc_cipher_suite") { input, configuration throws(ConfigurationError) in
            let suite = try input.integer(in: 0...17)
            guard BMCSettings.cipherSuites.contains(suite) else {
                throw input.error("\(suite) is no cipher suite that can be used",
                                  advice: "Use one of \(BMCSettings.cipherSuites.sorted().map(String.init).joined(separator: ", "))")
            }
            configuration.bmc.cipherSuite = suite
        },
        ConfigurationKey("bmc_workarounds") { input, configuration throws(ConfigurationError) in
            configuration.bmc.workarounds = try input.bmcWorkarounds()
        },
        ConfigurationKey("bmc_interval") { input, configuration throws(ConfigurationError) in
            configuration.bmc.interval = try input.integer(in: BMCSettings.intervalRange)
        },
    ]
}

extension ConfigurationKey.Input {
    /// One of the words of an enum; `what` they are.
    fileprivate func choice<Choice: RawRepresentable & CaseIterable>(_ what: String) throws(ConfigurationError) -> Choice where Choice.RawValue == String {
        let name = try string()
        if let choice = Choice(rawValue: name) { return choice }
        let words = Choice.allCases.map { "\"\($0.rawValue)\"" }
        throw error("'\(name)' is no \(what)", advice: "Use \(words.dropLast().joined(separator: ", ")) or \(words.last ?? "")")
    }

    fileprivate func bmcAccess() throws(ConfigurationError) -> BMCSettings.Access? {
        let text = try string()
        switch text {
        case "": return nil
        case "local": return .local
        default: break
        }
        guard let address = BMCSettings.address(text) else {
            throw error("'\(text)' is no address of a BMC",
                        advice: "Write ADDRESS or ADDRESS:PORT, an IPv6 address in brackets, \"local\" for the kernel's driver, or \"\" for none")
        }
        return .network(address)
    }

    fileprivate func bmcWorkarounds() throws(ConfigurationError) -> [BMCWorkaround] {
        guard case .list(let elements) = value.content else {
            throw error("Expected a list of strings", advice: "Write bmc_workarounds = [ \"opensesspriv\" ]")
        }
        var result: [BMCWorkaround] = []
        for element in elements {
            let name = try string(element)
            guard let workaround = BMCWorkaround(rawValue: name) else {
                let known = BMCWorkaround.allCases.map(\.rawValue)
                throw error("Unknown workaround '\(name)'", at: element.position,
                            advice: ClosestName.to(name, among: known).map { "Did you mean '\($0)'?" } ?? "There are \(known.joined(separator: ", "))")
            }
            if !result.contains(workaround) { result.append(workaround) }
        }
        return result
    }
}

extension ServiceConfiguration {
    /// The rules that involve more than one key of the BMC's.
    func checkBMC(_ error: (_ key: String, _ message: String, _ advice: String) -> ConfigurationError) throws(ConfigurationError) {
        guard let session = bmc.session else { return }
        if let misplaced = bmc.workarounds.first(where: { !$0.sessions.contains(session) }) {
            let place = switch misplaced.sessions {
            case [.driver]: "of the host itself (bmc_address = \"local\")"
            case [.lan15]: "on the network that speaks IPMI 1.5 (bmc_protocol)"
            case [.lan20]: "on the network that speaks IPMI 2.0 (bmc_protocol)"
            default: "on the network"
            }
            throw error("bmc_workarounds", "Workaround '\(misplaced.rawValue)' is for a BMC \(place)", "Remove it, or change bmc_address (\(bmc.name))")
        }
        if bmc.kgFile != nil, session == .lan15 {
            throw error("bmc_kg_file", "IPMI 1.5 knows no key K_g", "Remove bmc_kg_file, or set bmc_protocol = \"2.0\"")
        }
        if bmc.device != nil, session == .driver, bmc.driver == .kcs {
            throw error("bmc_driver_device", "The driver 'kcs' opens no device: the firmware tells where the BMC's ports are", "Remove bmc_driver_device")
        }
    }

    /// The password of the BMC's user, read anew each time; empty in band, where none is asked for.
    public func loadBMCPassword() throws(ConfigurationError) -> String {
        guard case .network = bmc.access, bmc.session != .lan15 || bmc.authentication != .none else { return "" }
        let secret = BMCSecret(file: bmc.passwordFile, what: "password", longest: bmc.session == .lan15 ? BMCSettings.longestOldPassword : BMCSettings.longestPassword,
                               version: bmc.version, key: "bmc_password_file")
        let bytes = try secret.bytes()
        guard let text = String(validating: bytes, as: UTF8.self), !bytes.contains(0) else {
            throw secret.error("The BMC's password is no text", "Write it into the file with `\(secret.makeCommand)`")
        }
        return text
    }

    /// The BMC's key K_g, read anew each time: text, or 0x and hexadecimal digits, as FreeIPMI's tools take it. Nil: none is configured.
    public func loadBMCKey() throws(ConfigurationError) -> [UInt8]? {
        guard let file = bmc.kgFile, bmc.session == .lan20 else { return nil }
        let secret = BMCSecret(file: file, what: "key K_g", longest: BMCSettings.longestKG, version: bmc.version, key: "bmc_kg_file")
        let bytes = try secret.bytes(room: 4096)
        guard bytes.starts(with: Array("0x".utf8)) else { return try secret.checked(bytes) }
        let digits = bytes.dropFirst(2).map { Character(UnicodeScalar($0)).hexDigitValue }
        let values = digits.compactMap { $0 }
        guard values.count == digits.count, !values.isEmpty, values.count % 2 == 0 else {
            throw secret.error("What follows 0x in the BMC's key K_g are no pairs of hexadecimal digits", "Write 0x and two digits a byte, or the key as text")
        }
        return try secret.checked(stride(from: 0, to: values.count, by: 2).map { UInt8(values[$0] << 4 | values[$0 + 1]) })
    }
}

/// A file with something that only the BMC and this host know.
private struct BMCSecret {
    let file: String
    let what: String
    /// Bytes.
    let longest: Int
    let version: BMCVersion
    /// The key of the configuration that names the file.
    let key: String

    var makeCommand: String { "(umask 077; cat > \(file))" }

    func error(_ message: String, _ advice: String) -> ConfigurationError { ConfigurationError(file: file, message: message, advice: advice) }

    /// Its content without the line's end.
    func bytes(room: Int? = nil) throws(ConfigurationError) -> [UInt8] {
        guard var bytes = try SmallFile.read(file, ceiling: 4096, check: ServiceConfiguration.checkMode(of: what)) else {
            throw error("The file with the BMC's \(what) does not exist", "Write the \(what) into it with `\(makeCommand)`, or set \(key)")
        }
        while bytes.last == UInt8(ascii: "\n") || bytes.last == UInt8(ascii: "\r") { bytes.removeLast() }
        return try checked(bytes, room: room ?? longest)
    }

    func checked(_ bytes: [UInt8], room: Int? = nil) throws(ConfigurationError) -> [UInt8] {
        guard bytes.count <= room ?? longest else {
            throw error("The BMC's \(what) has \(bytes.count) bytes", "IPMI \(version.rawValue) has room for \(longest); is this the right file?")
        }
        return bytes
    }
}
