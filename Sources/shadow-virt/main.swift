print("shadow-virt")
