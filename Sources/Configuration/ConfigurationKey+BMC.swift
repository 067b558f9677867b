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
            let name = try input.string()
            guard let privilege = BMCSettings.Privilege(rawValue: name) else {
                throw input.error("'\(name)' is no privilege level", advice: "Use \"user\", \"operator\" or \"admin\"")
            }
            configuration.bmc.privilege = privilege
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
        guard let access = bmc.access else { return }
        let isNetwork = access != .local
        if let misplaced = bmc.workarounds.first(where: { $0.isForNetwork == !isNetwork }) {
            throw error("bmc_workarounds", "Workaround '\(misplaced.rawValue)' is for a BMC \(isNetwork ? "behind the kernel's driver" : "on the network")",
                        "Remove it, or change bmc_address (\(bmc.name))")
        }
    }

    /// The password of the BMC's user, read anew each time; empty for the kernel's driver, which asks for none.
    public func loadBMCPassword() throws(ConfigurationError) -> String {
        guard case .network = bmc.access else { return "" }
        let make = "(umask 077; cat > \(bmc.passwordFile))"
        func error(_ message: String, _ advice: String) -> ConfigurationError { ConfigurationError(file: bmc.passwordFile, message: message, advice: advice) }
        guard var bytes = try SmallFile.read(bmc.passwordFile, ceiling: 4096, check: Self.checkMode(of: "password")) else {
            throw error("The file with the BMC's password does not exist", "Write the password into it with `\(make)`, or set bmc_password_file")
        }
        while bytes.last == UInt8(ascii: "\n") || bytes.last == UInt8(ascii: "\r") { bytes.removeLast() }
        guard bytes.count <= BMCSettings.longestPassword else {
            throw error("The BMC's password has \(bytes.count) bytes", "IPMI 2.0 has room for \(BMCSettings.longestPassword); is this the right file?")
        }
        guard let text = String(validating: bytes, as: UTF8.self), !bytes.contains(0) else {
            throw error("The BMC's password is no text", "Write it into the file with `\(make)`")
        }
        return text
    }
}
